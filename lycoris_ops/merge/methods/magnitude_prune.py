"""Add only the largest values of each change."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...changes.forms import Additive, Dense
from ..deltas import Deltas
from ..elements import DENSITY, SCALE, largest_kept
from ..method import MergeMethod, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = scale * sum of w_i H_i. H_i keeps the share `density` of the values of D_i, the largest in size."""
    total = torch.zeros(deltas.shape, device=deltas.device)
    for index, strength in enumerate(deltas.strengths):
        kept = largest_kept(deltas.dense(index), options["density"], deltas.pause)
        total.add_(kept, alpha=options["scale"] * strength)
    return [Dense(total)]


METHOD = MergeMethod(
    name="magnitude_prune",
    merge=merge,
    source="PEFT (magnitude_prune), the trimming of TIES-Merging (2306.01708) before a sum",
    factors=False,
    options=(DENSITY, SCALE),
)
