"""How much is lost at the usual rates of `lycoris_ops.train.rates`, against the best rates found."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping

from lycoris_ops.train.rates import rate_of

from .results import Result

WIDTHS = {
    "characters": 81,
    "series": 61,
    "digits": 72,
    "flow": 75,
    "table": 78,
    "text lines": 253,
    "source code": 484,
    "pictures": 121,
}
"""The geometric mean of sqrt(outputs * inputs) over the layers that are adapted, by task."""
KINDS = {
    "LoRA": "lora",
    "DoRA": "lora",
    "LoRA, gradient": "lora",
    "auto": "lora",
    "LoHa": "loha",
    "LoKr": "lokr",
    "OFT": "oft",
    "fine-tuning": "full",
}
"""The methods, each with the kind whose usual rate it has. Plans have that of a LoRA of as many numbers."""


def regrets(results: Iterable[Result]) -> dict[tuple[str, str], list[float]]:
    """By task and method: for each length and size, the loss at the usual rate over the lowest one, less 1.

    The losses are those of the split on which rates are found, with the seed 0.
    """
    grids: dict[tuple[str, str, str, float], dict[int, float]] = {}
    for result in results:
        run = result.run
        if run.seed == 0 and run.method in KINDS and run.task in WIDTHS and math.isfinite(result.tune):
            grids.setdefault((run.task, run.method, run.length, run.size), {})[run.step] = result.tune
    found: dict[tuple[str, str], list[float]] = {}
    for (task, method, _, size), grid in grids.items():
        if len(grid) > 1:
            lr = rate_of(KINDS[method], [(WIDTHS[task], WIDTHS[task])], size)
            loss = between(grid, 4 * math.log10(lr))
            found.setdefault((task, method), []).append(loss / min(grid.values()) - 1)
    return found


def between(grid: Mapping[int, float], step: float) -> float:
    """The loss at a rate between two that were tried, its logarithm interpolated; beyond all of them that of
    the last one, or higher, as the last two go on."""
    points = sorted(grid.items())
    beside = [pair for pair in itertools.pairwise(points) if step <= pair[1][0]]
    (low, at_low), (high, at_high) = beside[0] if beside else points[-2:]
    share = (step - low) / (high - low)
    loss = at_low * (at_high / at_low) ** share
    return loss if 0 <= share <= 1 else max(loss, at_low if share < 0 else at_high)


def in_words(found: Mapping[tuple[str, str], list[float]]) -> tuple[str, str]:
    """The mean and the largest regret of each task, the best first, and the mean of each kind."""
    by_task: dict[str, list[float]] = {}
    by_kind: dict[str, list[float]] = {}
    for (task, method), values in found.items():
        by_task.setdefault(task, []).extend(values)
        by_kind.setdefault(KINDS[method], []).extend(values)
    means = {task: statistics.fmean(values) for task, values in by_task.items()}
    tasks = [
        f"{100 * means[task]:.0f} % on {task} (at most {100 * max(by_task[task]):.0f} %)"
        for task in sorted(means, key=lambda task: means[task])
    ]
    kinds = [f"{kind} {100 * statistics.fmean(values):.0f} %" for kind, values in by_kind.items()]
    return ", ".join(tasks), ", ".join(kinds)
