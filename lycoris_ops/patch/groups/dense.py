"""Changes that are not factored: the full matrices are added as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...changes.forms import Dense
from ...maths.scratch import scratch
from .group import Add, Group

FORM = Dense


@dataclass(frozen=True)
class DenseGroup(Group):
    """W += the sum of strength_n * values_n."""

    first: int
    """Index of the first layer's values in the plan's tensors; the other layers' values follow."""
    slots: tuple[int, ...]
    """The place of each layer in the plan's strengths."""

    @property
    def summary(self) -> str:
        return f"{len(self.slots)} full, added as they are"

    def bind(self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype) -> Add:
        terms = [(tensors[self.first + n], strengths[slot]) for n, slot in enumerate(self.slots)]

        def add(rows: Tensor, first: int) -> None:
            for values, strength in terms:
                here = values[first : first + len(rows)]
                if here.dtype != dtype:
                    here = scratch("dense", here.shape, dtype, here.device).copy_(here)
                rows.add_(here, alpha=strength)

        return Add(add, once=len(terms) == 1)


def fuse(forms: Sequence[Dense], slots: Sequence[int], first: int) -> tuple[DenseGroup, tuple[Tensor, ...]]:
    """One group of all dense changes, and their tensors."""
    return DenseGroup(first, tuple(slots)), tuple(form.values for form in forms)
