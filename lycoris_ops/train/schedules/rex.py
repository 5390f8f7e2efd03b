"""(1 - x) / (1 - x / 2), for the share x of the steps that is done: REX (arXiv 2107.04197)."""


def factor(done: float) -> float:
    return (1 - done) / (1 - done / 2)
