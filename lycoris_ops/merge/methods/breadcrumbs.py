"""Breadcrumbs: the largest and the smallest values are left out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...changes.forms import Additive, Dense
from ..deltas import Deltas
from ..elements import CONSENSUS, SCALE, middle_kept, reduced
from ..method import MergeMethod, Option, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = scale * sum of w_i B_i.

    B_i is D_i without its floor(gamma n) largest values in size, of n, and then without the smallest ones, so
    that floor(density n) are left. Where both together are more than there are, fewer large ones are left
    out.
    """
    total = math.prod(deltas.shape)
    count = int(options["density"] * total)
    outliers = min(int(options["gamma"] * total), total - count)
    kept = [
        strength * middle_kept(deltas.dense(index), outliers, count, deltas.pause)
        for index, strength in enumerate(deltas.strengths)
    ]
    return [Dense(reduced(kept, options["consensus"], options["scale"], deltas.pause))]


METHOD = MergeMethod(
    name="breadcrumbs",
    merge=merge,
    source="Davari and Belilovsky, Model Breadcrumbs (2312.06795), section 3",
    factors=False,
    options=(
        Option("density", 0.9, "The share of the values of each adapter that is kept. 1 keeps all.", 0, 1),
        Option("gamma", 0.01, "The share of the largest values that is left out. 0 leaves none out.", 0, 1),
        CONSENSUS,
        SCALE,
    ),
)
