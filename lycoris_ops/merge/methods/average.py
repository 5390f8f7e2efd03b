"""The average of all changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...changes.forms import Additive
from ..deltas import Deltas
from ..method import MergeMethod, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = sum of w_i D_i / sum of |w_i|; a negative strength subtracts."""
    total = sum(map(abs, deltas.strengths)) or 1.0
    return deltas.combined([strength / total for strength in deltas.strengths])


METHOD = MergeMethod(
    name="average",
    merge=merge,
    source="Wortsman et al., Model Soups (2203.05482), section 2",
    factors=True,
    alone=lambda strength, _: math.copysign(1.0, strength),
)
