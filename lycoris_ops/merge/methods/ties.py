"""TIES: leave out small values and values of the losing sign."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...changes.forms import Additive, Dense
from ..deltas import Deltas
from ..elements import SCALE, agreeing, by_tiles, largest_kept, reduced
from ..method import MergeMethod, Option, Options

LEAST = 1e-8
"""Smaller sums of strengths count as 1."""


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = scale * mean of the values w_i H_i that have the sign of their sum.

    H_i keeps the share `density` of the values of D_i, the largest in size. Zeros do not vote and are not
    counted. Strengths weight the votes too, so a negative strength subtracts. With `divisor` "strengths" the
    sum of the values is divided by the sum of their strengths instead of their number, as in mergekit with
    `normalize`; a sum below 1e-8 counts as 1.
    """
    kept = [
        strength * largest_kept(deltas.dense(index), options["density"], deltas.pause)
        for index, strength in enumerate(deltas.strengths)
    ]
    if options["divisor"] == "count":
        return [Dense(reduced(kept, "ties", options["scale"], deltas.pause))]

    def by_strength(tile: list[Tensor]) -> Tensor:
        total, weight = agreeing(tile, deltas.strengths)
        return options["scale"] * total / torch.where(weight.abs() < LEAST, 1.0, weight)

    return [Dense(by_tiles(kept, by_strength, deltas.pause))]


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
        Option(
            "divisor",
            "count",
            "count: the mean of the values that agree. strengths: their sum over the sum of their strengths, "
            "as in mergekit. At equal positive strengths the second is the first divided by the strength.",
            choices=("count", "strengths"),
        ),
        SCALE,
    ),
)
