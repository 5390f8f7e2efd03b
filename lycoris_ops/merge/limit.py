"""Bound the spectral norm of a merged change."""

from __future__ import annotations

from collections.abc import Sequence

from ..algorithms.fitting import Delta
from ..changes.forms import Additive
from .deltas import Deltas


def limited(merged: Sequence[Additive], deltas: Deltas, most: float) -> Sequence[Additive]:
    """The merged change D times min(1, most * s / sigma_1(D)), with s the largest of all sigma_1(w_i D_i)."""

    def leading(forms: Sequence[Additive], of: Deltas) -> float:
        delta = Delta(forms, of.shape, largest=1, settled=0.0, device=of.device, pause=of.pause)
        return float(delta.spectrum[:1].sum())

    if not merged:
        return merged
    inner = deltas.inner()
    sizes = [leading(forms, inner) for forms in inner.forms]
    size = leading(merged, deltas)
    largest = max(abs(strength) * size for strength, size in zip(deltas.strengths, sizes, strict=True))
    return merged if size <= most * largest else [form.times(most * largest / size) for form in merged]
