"""The learning rate of a method, found by a search that goes on until the best is between two others."""

from __future__ import annotations

from collections.abc import Callable

Measure = Callable[[int], float]
"""The held-out loss at a learning rate of 10 ** (step / 4)."""

LIMITS = (-24, 4)
"""The lowest and the highest step that is tried: rates from 1e-6 to 10."""


def best(measure: Measure, start: int, width: int) -> int:
    """The step with the least loss, where those `width` lower and higher are both worse.

    Measures `start` and goes on from there in jumps of `width`. Losses may be infinite: a rate at which the
    training diverges is worse than any other, and from there the search goes down.
    """
    found = {start: measure(start)}
    while True:
        middle = min(found, key=lambda step: (found[step], step))
        beside = [step for step in (middle - width, middle + width) if LIMITS[0] <= step <= LIMITS[1]]
        missing = [step for step in beside if step not in found]
        if not missing:
            return middle
        found[missing[0]] = measure(missing[0])
