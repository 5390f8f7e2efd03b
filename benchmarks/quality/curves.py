"""What the results say: means over seeds, and the arithmetic of loss curves."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .results import SEARCHED, Result

Point = tuple[float, float]

ALIKE = 1.02
"""Sizes of adapters that differ by a smaller factor count as equal: each kind comes in steps of its own."""


@dataclass(frozen=True)
class Entry:
    """A method at one size and its best learning rate: means over the seeds that there are."""

    task: str
    recipe: str
    """`task.digest` of the task."""
    length: str
    method: str
    size: float
    lr: float
    numbers: float
    loss: float
    spread: float
    """The standard deviation over seeds; 0 for one seed."""
    seeds: int
    edge: bool
    """Whether the best rate is the lowest or the highest that was measured."""
    curve: tuple[Point, ...]
    """The loss after so many steps."""

    @property
    def key(self) -> tuple[str, str, float, str]:
        """The key to its times in `times.Times`. Only a search has other times for a long training."""
        return self.recipe, self.method, self.size, self.length if self.searched else "short"

    @property
    def searched(self) -> bool:
        """Whether the method finds its rate itself."""
        return self.lr == 10**SEARCHED


def entries(results: Iterable[Result], recipes: Iterable[str]) -> list[Entry]:
    """The entries of the tasks of these recipes (`task.digest`), in the order of the results."""
    wanted = set(recipes)
    groups: dict[tuple[str, str, str, float], list[Result]] = {}
    for result in results:
        run = result.run
        if run.recipe in wanted:
            groups.setdefault((run.task, run.length, run.method, run.size), []).append(result)
    return [_entry(group) for group in groups.values()]


def _entry(group: Sequence[Result]) -> Entry:
    tuned = {result.run.step: result.tune for result in group if result.run.seed == 0}
    step = min(tuned, key=lambda step: (tuned[step], step))
    chosen = [result for result in group if result.run.step == step]
    losses = [result.test for result in chosen]
    run = chosen[0].run
    curve = tuple(
        (points[0][0], statistics.fmean(loss for _, loss in points))
        for points in zip(*(result.curve for result in chosen), strict=True)
    )
    return Entry(
        task=run.task,
        recipe=run.recipe,
        length=run.length,
        method=run.method,
        size=run.size,
        lr=run.lr,
        numbers=statistics.fmean(result.numbers for result in chosen),
        loss=statistics.fmean(losses),
        spread=statistics.stdev(losses) if len(losses) > 1 and all(map(math.isfinite, losses)) else 0.0,
        seeds=len(chosen),
        edge=step != SEARCHED and not (min(tuned) < step < max(tuned)),
        curve=curve,
    )


def reached(points: Iterable[Point], target: float, *, logarithmic: bool) -> tuple[str, float]:
    """Where a falling curve first comes down to a loss: ("", x), linear between points.

    `points` are (x, loss). If `logarithmic`, the line is one in log x. ("<", x) where the first point is
    lower already, (">", x) where no point comes down to the loss. A point above an earlier one is left out: a
    larger adapter, or more steps, should not be worse.
    """
    falling: list[Point] = []
    for x, loss in sorted(points):
        if not falling or loss < falling[-1][1]:
            falling.append((x, loss))
    if not falling:
        raise ValueError("a curve without points")
    if falling[0][1] <= target:
        return ("" if falling[0][1] == target else "<"), falling[0][0]
    for (left, above), (right, below) in itertools.pairwise(falling):
        if below <= target:
            share = (above - target) / (above - below) if math.isfinite(above) else 1.0
            if logarithmic:
                return "", left * (right / left) ** share
            return "", left + share * (right - left)
    return ">", max(x for x, _ in points)


def loss_at(points: Iterable[Point], numbers: float) -> float | None:
    """The loss at so many numbers, linear in their logarithm; None outside of the points. See ALIKE."""
    known = sorted(points)
    apart, loss = min((abs(math.log(x / numbers)), loss) for x, loss in known)
    if apart <= math.log(ALIKE):
        return loss
    for (left, above), (right, below) in itertools.pairwise(known):
        if left < numbers < right:
            share = math.log(numbers / left) / math.log(right / left)
            return above + share * (below - above)
    return None
