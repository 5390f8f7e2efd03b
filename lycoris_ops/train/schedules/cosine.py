"""(1 + cos(pi x)) / 2, for the share x of the steps that is done (arXiv 1608.03983, without restarts)."""

import math


def factor(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2
