"""Bound the spectral norm of a merged change."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..algorithms.fitting import Delta
from ..changes.forms import Additive
from ..maths.tensors import fetched
from .deltas import Deltas


def limited(merged: Sequence[Additive], deltas: Deltas, most: float) -> Sequence[Additive]:
    """The merged change D times min(1, most * s / sigma_1(D)), with s the largest of all sigma_1(w_i D_i)."""

    def leading(forms: Sequence[Additive]) -> Tensor:
        delta = Delta(forms, deltas.shape, largest=1, settled=0.0, device=deltas.device, pause=deltas.pause)
        return delta.spectrum[:1].sum()

    if not merged:
        return merged
    *sizes, size = map(float, fetched(*map(leading, (*deltas.forms, merged))))
    largest = max(abs(strength) * one for strength, one in zip(deltas.strengths, sizes, strict=True))
    return merged if size <= most * largest else [form.times(most * largest / size) for form in merged]
