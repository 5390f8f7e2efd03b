"""TIES: small values are trimmed, and signs that lose are left out."""

from __future__ import annotations

from collections.abc import Sequence

from ...changes.forms import Additive, Dense
from ..deltas import Deltas
from ..elements import SCALE, largest_kept, reduced
from ..method import MergeMethod, Option, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = scale * mean of the values w_i H_i that have the sign of their sum.

    H_i has the largest values of D_i, the share `density` of them. Zeros do not vote and are not counted.
    Strengths weight the votes too, so that a negative one subtracts.
    """
    kept = [
        strength * largest_kept(deltas.dense(index), options["density"], deltas.pause)
        for index, strength in enumerate(deltas.strengths)
    ]
    return [Dense(reduced(kept, "ties", options["scale"], deltas.pause))]


METHOD = MergeMethod(
    name="ties",
    merge=merge,
    source="Yadav et al., TIES-Merging (2306.01708), algorithm 1",
    factors=False,
    options=(
        Option(
            "density",
            0.2,
            "The share of the values of each adapter that is kept. No density makes this a plain sum.",
            0,
            1,
        ),
        SCALE,
    ),
)
