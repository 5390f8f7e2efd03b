"""Sparse changes: single values, added at their places."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..algebra import flat_shape
from ..forms import Sparse
from .group import Add, Product
from .scratch import scratch

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

    def products(self, tensors: Sequence[Tensor]) -> list[Product]:
        return []

    def bind(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> Add:
        terms: list[tuple[list[int], Tensor, Tensor]] = []
        for n, slot in enumerate(self.slots):
            row, column, values = tensors[self.first + 3 * n : self.first + 3 * n + 3]
            order = row.argsort()
            place = row[order] * flat_shape(weight.shape)[1] + column[order]
            terms.append(
                (
                    cast("list[int]", cast("Any", row[order]).tolist()),
                    place,
                    values[order].to(dtype) * strengths[slot],
                )
            )

        def add(rows: Tensor, first: int) -> None:
            for row, place, values in terms:
                here = slice(bisect_left(row, first), bisect_left(row, first + len(rows)))
                within = scratch("sparse", values.shape, place.dtype, place.device)[here]
                torch.sub(place[here], first * rows.shape[1], out=within)
                rows.view(-1).index_add_(0, within, values[here])

        return add


def fuse(forms: Sequence[Sparse], slots: Sequence[int], first: int) -> tuple[SparseGroup, tuple[Tensor, ...]]:
    """One group of all sparse changes, and their tensors."""
    tensors = tuple(part for form in forms for part in (form.row, form.column, form.values))
    return SparseGroup(first, tuple(slots)), tensors
