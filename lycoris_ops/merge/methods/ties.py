"""TIES: leave out small values and values of the losing sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...changes.forms import Additive, Dense
from ..deltas import Deltas
from ..elements import CONSENSUS, SCALE, largest_kept, reduced
from ..method import MergeMethod, Option, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = scale * mean of the values w_i H_i that have the sign of their sum.

    H_i keeps the share `density` of the values of D_i, the largest in size. Zeros do not vote and are not
    counted. Strengths weight the votes too, so a negative strength subtracts. Other values of `consensus`
    vote or divide in other ways, see `agreed`.
    """
    kept = [
        largest_kept(deltas.dense(index), options["density"], deltas.pause) for index in range(deltas.count)
    ]
    return [Dense(reduced(kept, deltas, options))]


METHOD = MergeMethod(
    name="ties",
    merge=merge,
    source="Yadav et al., TIES-Merging (2306.01708), algorithm 1",
    factors=False,
    options=(
        Option(
            "density",
            0.2,
            "The share of each adapter's values to keep. No density makes this a plain sum.",
            0,
            1,
        ),
        replace(CONSENSUS, default="ties"),
        SCALE,
    ),
)
