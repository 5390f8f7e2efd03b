"""Draw a plan."""

from __future__ import annotations

import os
from pathlib import Path

from ..charts import BarRow, Picture, colour_of, in_rows, write_png
from .plan import Plan, PlanRow

SHOWN = 60
"""The most layers that are drawn: those with the most parameters."""


def draw_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write the picture of a plan to a PNG file, see `plan_picture`.

    Raises LycorisError for another ending and where Pillow is not installed, and WriteError.
    """
    write_png(Path(path), lambda: plan_picture(plan))


def plan_picture(plan: Plan) -> Picture:
    """The parameters of each layer as a bar, with its rank and its gain.

    The gain is a share of the energy of the gradient.
    """
    rows = plan.rows
    title = "parameters of each layer"
    if len(rows) > SHOWN:
        rows = tuple(sorted(rows, key=lambda row: -row.parameters)[:SHOWN])
        title += f", of the largest {SHOWN}"
    drawn = [
        BarRow(row.path, [(row.parameters, colour_of(0), f"rank {row.rank}{_gained(row)}")]) for row in rows
    ]
    return in_rows(plan.verdict(), title, drawn, [])


def _gained(row: PlanRow) -> str:
    return "" if row.gain is None else f", {row.gain:.1%} of the gain"
