"""The schedules of the learning rate.

Each gives the share of the full rate at x, the progress after the warm-up, from 0 to below 1. A schedule has
no state, so it is the same after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..errors import TrainError, unknown_name

_SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda x: 1.0,
    # Source: arXiv 1608.03983.
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "linear": lambda x: 1 - x,
    # REX. Source: arXiv 2107.04197.
    "rex": lambda x: (1 - x) / (1 - x / 2),
}


def schedules() -> Mapping[str, Callable[[float], float]]:
    """All schedules by name."""
    return _SCHEDULES


def schedule(name: str, warmup: float, steps: int, restarts: int = 0) -> Callable[[int], float]:
    """A function from a step, counted from 0, to the share of the full rate, for `steps` steps in all.

    The n-th of w warm-up steps has n / w. A `warmup` below 1 is a share of all steps. With r restarts the
    steps after the warm-up are r + 1 equal parts, and each begins with the full rate (arXiv 1608.03983).
    Raises TrainError for an unknown name.
    """
    if name not in _SCHEDULES:
        raise unknown_name("E-schedule-unknown", name, _SCHEDULES, error=TrainError)
    factor = _SCHEDULES[name]
    rising = round(warmup * steps) if warmup < 1 else int(warmup)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        # A run that continues past its last step keeps that step's rate.
        done, rest = max(0, min(step, steps - 1) - rising), max(1, steps - rising)
        # In whole numbers: a quotient that is rounded down would not begin its part anew.
        return factor(done * (restarts + 1) % rest / rest)

    return share
