"""Plot the losses of a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..charts import Axes, Picture, Series, below_each_other, binned, colour_of
from ..files.writing import new_files
from .history import History

if TYPE_CHECKING:
    from PIL.Image import Image

BINS = 50
"""The most points on the curve of training losses. Each is the mean of several steps."""


def draw_curves(history: History, path: Path) -> None:
    """Write the curves as PNG. Raises LycorisError where Pillow is not installed, and WriteError."""
    picture = _curves(history, None, "loss").png()
    with new_files([path], len(picture)) as (file,):
        file.write(picture)


def curves_picture(history: History, steps: int | None = None, title: str = "loss") -> Image:
    """Plot the training losses, as means of several steps, and the held-out losses.

    If `steps` is given, the axis has that length: the whole training. Raises LycorisError where Pillow is not
    installed.
    """
    return _curves(history, steps, title).image()


def _curves(history: History, steps: int | None, title: str) -> Picture:
    trained = list(binned([(float(step), loss) for step, loss in history.losses], BINS))
    held = [(float(step), loss) for step, loss in history.validation]
    series = [Series(trained, colour_of(0), "training")]
    if held:
        series.append(Series(held, colour_of(1), "held out", "line and dots"))
    end = steps or max((step for step, _ in (*history.losses, *history.validation)), default=1)
    return below_each_other("", [], [Axes(title, series, across="step", span=(0.0, float(end)))])
