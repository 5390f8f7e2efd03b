"""Bound the spectral norm of a merged change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..algorithms.fitting import FACTORED
from ..changes.factors import joined
from ..changes.forms import Additive, add_up
from ..maths.decompositions import leading_triples, product_triples
from ..maths.tensors import fetched
from .deltas import Deltas


def limited(merged: Sequence[Additive], deltas: Deltas, most: float) -> Sequence[Additive]:
    """The merged change D times min(1, most * s / sigma_1(D)), with s the largest of all sigma_1(w_i D_i)."""
    sums = (*deltas.forms, merged)
    *sizes, size = map(float, fetched(*(_spectral(forms, deltas) for forms in sums)))
    largest = max(abs(strength) * one for strength, one in zip(deltas.strengths, sizes, strict=True))
    return merged if size <= most * largest else [form.times(most * largest / size) for form in merged]


def _spectral(forms: Sequence[Additive], deltas: Deltas) -> Tensor:
    """The largest singular value of a sum of forms, on the device."""
    if not forms:
        return torch.zeros((), device=deltas.device)
    factors = joined(forms, int(FACTORED * min(deltas.shape)), deltas.device)
    if factors is not None:
        values = product_triples(*factors)[1]
    else:
        values = leading_triples(add_up(forms, torch.float32, deltas.device), 1, pause=deltas.pause)[1]
    return values[0] if len(values) else values.new_zeros(())
