"""Draw a plan."""

from __future__ import annotations

import os
from pathlib import Path

from ..charts import BarRow, Picture, colour_of, in_rows, write_png
from ..messages import joined, phrase
from .plan import Plan

SHOWN = 60
"""The most layers that are drawn: those with the most parameters."""


def draw_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write the picture of a plan to a PNG file, see `plan_picture`.

    Raises LycorisError for another file ending or without Pillow, and WriteError where it cannot write.
    """
    write_png(Path(path), lambda: plan_picture(plan))


def plan_picture(plan: Plan) -> Picture:
    """A bar for each layer's parameters, coloured by algorithm, with its rank and `PlanRow.gain`."""
    rows = plan.rows
    title = phrase("R-chart-parameters")
    if len(rows) > SHOWN:
        rows = tuple(sorted(rows, key=lambda row: -row.parameters)[:SHOWN])
        title = phrase("R-chart-parameters-largest", shown=SHOWN)
    kinds = dict.fromkeys(row.algorithm for row in plan)
    colours = {kind: colour_of(number) for number, kind in enumerate(kinds)}
    drawn: list[BarRow] = []
    for row in rows:
        rank = "" if row.rank is None else phrase("R-chart-row-rank", rank=row.rank)
        gain = "" if row.gain is None else phrase("R-chart-row-gain", gain=row.gain)
        words = joined([text for text in (rank, gain) if text])
        drawn.append(BarRow(row.path, [(row.parameters, colours[row.algorithm], words)]))
    return in_rows(plan.verdict(), title, drawn, list(colours.items()))
