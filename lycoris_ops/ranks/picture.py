"""A plan as a picture."""

from __future__ import annotations

import os
from typing import Any

from ..errors import LycorisError
from .plan import Plan

LONGEST = 40
"""The most characters of a path that are shown."""


def draw_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a picture of a plan to a file, as PNG, SVG or PDF by its ending.

    For each layer it shows the parameters as a bar, coloured by algorithm, with the rank, and beside it the
    gain. Raises LycorisError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LycorisError(
            "matplotlib is not installed", expected="it, to draw plans", hint="pip install matplotlib"
        ) from error
    rows = plan.rows[::-1]
    names = [row.path if len(row.path) <= LONGEST else f"...{row.path[3 - LONGEST :]}" for row in rows]
    kinds = list(dict.fromkeys(row.algorithm for row in plan))
    # matplotlib is typed in part only.
    figure: Any = Figure(figsize=(9, 1.2 + 0.22 * max(4, len(rows))), layout="constrained")
    sizes, gains = figure.subplots(1, 2, sharey=True)
    for index, kind in enumerate(kinds):
        places = [place for place, row in enumerate(rows) if row.algorithm == kind]
        sizes.barh(places, [rows[place].parameters for place in places], color=f"C{index}", label=kind)
    for place, row in enumerate(rows):
        sizes.text(row.parameters, place, f" {row.rank or ''}", va="center", fontsize=7)
    gains.barh(range(len(rows)), [100 * (row.gain or 0) for row in rows], color="grey")
    sizes.set_yticks(range(len(rows)), names, fontsize=7)
    sizes.set(xlabel="parameters (rank)", title=f"{plan.parameters:,} parameters")
    gains.set(xlabel="gain, % of the energy of the gradient", title=f"{plan.gain:.1%}")
    sizes.legend(fontsize=7)
    figure.savefig(path)
