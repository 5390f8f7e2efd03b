"""Sparse changes: single values, added at their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...changes.forms import Sparse
from ...maths.shapes import flat_shape
from .group import Add, Factors

FORM = Sparse


@dataclass(frozen=True)
class SparseGroup:
    """W[row, column] += strength * value, for each value of each layer."""

    first: int
    """Index of the first layer's rows in the plan's tensors; its columns and values follow, then the next
    layer's."""
    slots: tuple[int, ...]
    """The place of each layer in the plan's strengths."""

    @property
    def summary(self) -> str:
        return f"{len(self.slots)} sparse, added at their places"

    def products(self, tensors: Sequence[Tensor]) -> list[Factors]:
        return []

    def bind(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> Add:
        total = torch.zeros(flat_shape(weight.shape), dtype=dtype, device=weight.device)
        for n, slot in enumerate(self.slots):
            row, column, values = tensors[self.first + 3 * n : self.first + 3 * n + 3]
            total.index_put_((row, column), values.to(dtype) * strengths[slot], accumulate=True)
        return Add.of(total)


def fuse(forms: Sequence[Sparse], slots: Sequence[int], first: int) -> tuple[SparseGroup, tuple[Tensor, ...]]:
    """One group of all sparse changes, and their tensors."""
    tensors = tuple(part for form in forms for part in (form.row, form.column, form.values))
    return SparseGroup(first, tuple(slots)), tensors
