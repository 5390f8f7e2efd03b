"""Plot the losses of a training, and those of the race before it."""

from __future__ import annotations

import math
import os
from pathlib import Path

from ..charts import Axes, Picture, Series, below_each_other, binned, colour_of, write_png
from ..messages import phrase
from .history import History
from .race import Race

BINS = 50
"""The most points on the curve of training losses. Each is the mean of several steps."""


def draw_curves(history: History, path: Path) -> None:
    """Write the curves to a PNG file. Raises as `draw_race` does."""
    write_png(path, lambda: curves_picture(history))


def curves_picture(
    history: History, steps: int | None = None, title: str = "", race: Race | None = None
) -> Picture:
    """The training losses, as means of several steps, and the held-out losses; below them a race.

    The axis ends at `steps`, or else at the latest step.
    """
    trained = list(binned([(float(step), loss) for step, loss in history.losses], BINS))
    held = [(float(step), loss) for step, loss in history.validation]
    series = [Series(trained, colour_of(0), phrase("R-chart-training"))]
    if held:
        series.append(Series(held, colour_of(1), phrase("R-held-out"), "line and dots"))
    end = steps or max((step for step, _ in (*history.losses, *history.validation)), default=1)
    losses = Axes(title or phrase("R-chart-loss"), series, phrase("R-chart-step"), span=(0.0, float(end)))
    charts = [losses, *(_heats(race) if race else [])]
    return below_each_other(race.verdict() if race else "", [], charts)


def draw_race(race: Race, path: str | os.PathLike[str]) -> None:
    """Write the picture of a race to a PNG file, see `race_picture`.

    Raises LycorisError for another file ending or without Pillow, and WriteError where it cannot write.
    """
    write_png(Path(path), lambda: race_picture(race))


def race_picture(race: Race) -> Picture:
    """The held-out loss of the heats over the rate: a line for each entrant.

    Heats that diverged are not drawn. Losses above the loss before the first step are cut off.
    """
    return below_each_other(race.verdict(), [], _heats(race))


def _heats(race: Race) -> list[Axes]:
    series: list[Series] = []
    for number, name in enumerate(dict.fromkeys(heat.name for heat in race.heats)):
        own = [heat for heat in race.heats if heat.name == name and math.isfinite(heat.loss)]
        points = sorted((heat.lr, heat.loss) for heat in own)
        series.append(Series(points, colour_of(number), name, "line and dots"))
    losses = [loss for each in series for _, loss in each.points]
    low, high = min(losses, default=0.0), min(max(losses, default=0.0), race.start)
    limits = (low, high) if low < high else None
    title, rate = phrase("R-held-out-loss"), phrase("R-chart-rate")
    axes = Axes(title, series, across=rate, logarithmic=(True, False), limits=limits)
    return [axes] if losses else []
