"""Average the changes, and shrink the average where they disagree."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...changes.forms import Additive
from ..deltas import Deltas
from ..method import MergeMethod, Options

FLAT = 1e-6


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = t * mean of the w_i D_i, with t = T c / (1 + (T - 1) c).

    T is the number of adapters, and c the mean cosine of all pairs of w_i D_i.
    Nearly orthogonal changes give almost nothing: the method is for variants of one adapter. t is 0 where the
    divisor is 0.
    """
    count = deltas.count
    if count == 1:
        return deltas.combined(deltas.strengths)
    weights = torch.tensor(deltas.strengths, dtype=torch.float64)
    gram = deltas.gram() * weights[:, None] * weights[None]
    norms = gram.diagonal().clamp(min=0).sqrt()
    cosines = gram / (norms[:, None] * norms[None]).clamp(min=1e-300)
    mean = float(cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
    divisor = 1 + (count - 1) * mean
    share = count * mean / divisor if abs(divisor) > FLAT else 0.0
    return deltas.summed([share * strength / count for strength in deltas.strengths])


METHOD = MergeMethod(
    name="model_stock",
    merge=merge,
    source="Jang, Yun and Han, Model Stock (2403.19522), eq. 2 and its extension to N models",
    factors=True,
    adapters=(2, float("inf")),
    alone=lambda strength, _: strength,
)
