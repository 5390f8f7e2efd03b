"""The schedules of the learning rate, one a file. A file that is dropped in is registered under its name.

Each has `factor(done)`: the share of the full rate when the share `done`, from 0 to below 1, of the steps
after the warm-up is done. A schedule has no state, so it is the same after a resume.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from ...discovery import discover
from ...errors import TrainError, unknown_name


@cache
def schedules() -> dict[str, Callable[[float], float]]:
    """All schedules by name."""
    return {module.__name__.rpartition(".")[2]: module.factor for module in discover(__name__)}


def schedule(name: str, warmup: float, steps: int) -> Callable[[int], float]:
    """The share of the full rate in each step, counted from 0, of a training of so many steps.

    In the n-th of w steps of warm-up it is n / w. `warmup` below 1 is a share of all steps. Raises TrainError
    for an unknown name.
    """
    if name not in schedules():
        raise unknown_name("an unknown schedule", name, schedules(), error=TrainError)
    factor = schedules()[name]
    rising = round(warmup * steps) if warmup < 1 else int(warmup)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        # A run that goes on after its last step stays there.
        return factor(max(0, min(step, steps - 1) - rising) / max(1, steps - rising))

    return share
