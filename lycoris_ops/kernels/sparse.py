"""Sparse changes: single values, added at their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..forms import Sparse
from .group import Add, Product

FORM = Sparse


@dataclass(frozen=True)
class SparseGroup:
    """W[row, column] += strength * value."""

    first: int
    """Index of the first layer's rows in the plan's tensors; its columns and values follow."""
    slots: tuple[int, ...]

    @property
    def summary(self) -> str:
        return f"{len(self.slots)} sparse, added at their places"

    def products(self, tensors: Sequence[Tensor], strengths: Sequence[float]) -> list[Product]:
        return []

    def bind(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> Add:
        terms: list[tuple[Tensor, Tensor, Tensor]] = []
        for n, slot in enumerate(self.slots):
            row, column, values = tensors[self.first + 3 * n : self.first + 3 * n + 3]
            terms.append((row, column, values.to(dtype) * strengths[slot]))

        def add(rows: Tensor, first: int) -> None:
            for row, column, values in terms:
                here = (row >= first) & (row < first + len(rows))
                rows.index_put_((row[here] - first, column[here]), values[here], accumulate=True)

        return add


def fuse(forms: Sequence[Sparse], slots: Sequence[int], first: int) -> tuple[SparseGroup, tuple[Tensor, ...]]:
    """One group of all sparse changes, and their tensors."""
    tensors = tuple(part for form in forms for part in (form.row, form.column, form.values))
    return SparseGroup(first, tuple(slots)), tensors
