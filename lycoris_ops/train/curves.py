"""A picture of a training's losses."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ..files.writing import written
from .extras import required
from .history import History


def draw_curves(history: History, path: Path) -> None:
    """Write the curves as PNG: each step's loss, its running mean, and the held-out loss.

    Raises TrainError where matplotlib is not installed, and WriteError.
    """
    # The figure alone, without pyplot, which would choose a window system.
    figures: Any = required("matplotlib.figure", "matplotlib", "a picture of the curves")
    figure = figures.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    if history.losses:
        steps, losses = zip(*history.losses, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
        axes.plot(steps, _smooth(losses), color="tab:blue", label="training")
    if history.validation:
        steps, losses = zip(*history.validation, strict=True)
        axes.plot(steps, losses, color="tab:orange", marker=".", label="held out")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    # Without the version of matplotlib, so that the same curves make the same file.
    figure.savefig(image, format="png", dpi=100, metadata={"Software": None})
    with written([path], image.tell()) as (file,):
        file.write(image.getvalue())


def _smooth(values: tuple[float, ...]) -> list[float]:
    """The mean of each value and up to as many before it as a twentieth of all."""
    width = max(1, len(values) // 20)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    starts = [max(0, end - width) for end in range(1, len(values) + 1)]
    return [(sums[end] - sums[start]) / (end - start) for end, start in enumerate(starts, 1)]
