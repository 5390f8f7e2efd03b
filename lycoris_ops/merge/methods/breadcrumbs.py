"""Breadcrumbs: leave out the largest and the smallest values."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...changes.forms import Additive, Dense
from ..deltas import Deltas
from ..elements import CONSENSUS, SCALE, middle_kept, reduced
from ..method import MergeMethod, Option, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = scale * sum of w_i B_i; other values of `consensus` replace the sum, see `agreed`.

    B_i keeps floor(density n) of the n values of D_i: it leaves out the floor(gamma n) largest in size, and
    then the smallest. Where density + gamma is above 1, fewer large ones are left out.
    """
    total = math.prod(deltas.shape)
    count = int(options["density"] * total)
    outliers = min(int(options["gamma"] * total), total - count)
    kept = [middle_kept(deltas.dense(index), outliers, count, deltas.pause) for index in range(deltas.count)]
    return [Dense(reduced(kept, deltas, options))]


METHOD = MergeMethod(
    name="breadcrumbs",
    merge=merge,
    source="Davari and Belilovsky, Model Breadcrumbs (2312.06795), section 3",
    factors=False,
    options=(
        Option("density", 0.9, "The share of each adapter's values to keep. 1 keeps all.", 0, 1),
        Option("gamma", 0.01, "Leaves out this share of the values, the largest ones. 0: none.", 0, 1),
        CONSENSUS,
        SCALE,
    ),
)
