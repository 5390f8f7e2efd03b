"""Changes that are not factored, and sparse ones: added as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..forms import Full
from .group import Add, Product
from .scratch import scratch

FORM = Full


@dataclass(frozen=True)
class FullGroup:
    """W += strength * values."""

    first: int
    slots: tuple[int, ...]

    @property
    def summary(self) -> str:
        return f"{len(self.slots)} full, added as they are"

    def products(self, tensors: Sequence[Tensor]) -> list[Product]:
        return []

    def bind(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> Add:
        terms = [(tensors[self.first + n], strengths[slot]) for n, slot in enumerate(self.slots)]

        def add(rows: Tensor, first: int) -> None:
            for values, strength in terms:
                part = values[first : first + len(rows)]
                if part.dtype != dtype:
                    part = scratch("full", part.shape, dtype, part.device).copy_(part)
                rows.add_(part, alpha=strength)

        return add


def fuse(forms: Sequence[Full], slots: Sequence[int], first: int) -> tuple[FullGroup, tuple[Tensor, ...]]:
    """One group of all full changes, and their tensors."""
    return FullGroup(first, tuple(slots)), tuple(form.values for form in forms)
