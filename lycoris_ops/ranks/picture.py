"""Draw a plan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..charts import Bars, check_png, colour_of, in_rows, png_of
from ..files.writing import new_files
from .plan import Plan

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 60
"""The most layers that are drawn: those with the most parameters."""


def draw_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write the picture of a plan to a PNG file, see `plan_picture`.

    Raises LycorisError for another ending and where Pillow is not installed, and WriteError.
    """
    check_png(Path(path))
    picture = png_of(plan_picture(plan))
    with new_files([Path(path)], len(picture)) as (out,):
        out.write(picture)


def plan_picture(plan: Plan) -> Image:
    """The parameters of each layer as a bar, coloured by algorithm, with its rank and its gain.

    The gain is a share of the energy of the gradient. Raises LycorisError where Pillow is not installed.
    """
    rows = plan.rows
    title = f"{plan.parameters:,} parameters in {len(plan)} layers"
    if len(rows) > SHOWN:
        rows = tuple(sorted(rows, key=lambda row: -row.parameters)[:SHOWN])
        title += f", the largest {SHOWN} shown"
    kinds = dict.fromkeys(row.algorithm for row in plan)
    colours = {kind: colour_of(number) for number, kind in enumerate(kinds)}
    drawn: list[Bars] = []
    for row in rows:
        rank = "" if row.rank is None else f"rank {row.rank}"
        gain = "" if row.gain is None else f"  {row.gain:.1%}"
        drawn.append(Bars(row.path, [(row.parameters, colours[row.algorithm], rank + gain)]))
    return in_rows(title, drawn, list(colours.items()))
