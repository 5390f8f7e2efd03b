"""Changes that depend on the weight they meet (DoRA, OFT, IA3 ...): the layers compute them themselves.

A plan forms them first. The paths add their sum as one full matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...algorithms import Layer
from ...algorithms.base import Dependent, Parameter, overflow
from ...errors import LayerError, located
from ...maths.shapes import flat_shape
from ...maths.tensors import is_finite

FORM = Dependent


@dataclass(frozen=True)
class DependentTerm:
    """A layer whose tensors are among the plan's."""

    bare: Layer
    """The layer with None for each of its tensors."""
    names: tuple[str, ...]
    """The names of its tensors, in the order of the plan."""
    first: int
    """Index of the first of them in the plan's tensors."""
    slot: int
    """The place of the layer in the plan's strengths."""
    parameter: Parameter = "weight"
    file: str | None = None
    key: str | None = None

    def form(self, tensors: Sequence[Tensor]) -> Dependent:
        """The layer's change, with the layer put together from the plan's tensors."""
        own = tensors[self.first : self.first + len(self.names)]
        layer = self.bare.with_tensors(dict(zip(self.names, own, strict=True)))
        return Dependent(layer, self.parameter, self.file, self.key)


@dataclass(frozen=True)
class DependentGroup:
    """W += the sum of strength_n * delta_n(W), each delta computed from the weight before the patch."""

    terms: tuple[DependentTerm, ...]

    @property
    def first(self) -> int:
        """Index of the first of its tensors in the plan's tensors."""
        return self.terms[0].first

    @property
    def summary(self) -> str:
        kinds = ", ".join(sorted({term.bare.algorithm for term in self.terms}))
        return f"{len(self.terms)} that depend on the weight ({kinds}), one by one"

    def total(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> Tensor:
        """The sum (O, K) of the changes in `dtype`. `weight` has the rows that the group is for."""
        *_, total = self._sums(tensors, strengths, weight.to(dtype))
        return total

    def overflow(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> LayerError | None:
        """The error of the first layer with which the sum in `dtype`, or the weight with it, overflows.

        None where neither does. `weight` has the rows that the group is for.
        """
        met = weight.to(dtype)
        for term, total in zip(self.terms, self._sums(tensors, strengths, met), strict=True):
            for values, kept in ((total, dtype), (met.reshape(total.shape) + total, weight.dtype)):
                if not is_finite(values.to(kept)):
                    return overflow(kept).within(file=term.file, key=term.key)
        return None

    def _sums(self, tensors: Sequence[Tensor], strengths: Sequence[float], met: Tensor) -> Iterator[Tensor]:
        """The sum (O, K) of the changes up to each layer. All are one tensor, which the next one changes."""
        total: Tensor | None = None
        for term in self.terms:
            with located(file=term.file, key=term.key):
                change = term.form(tensors).change(met).reshape(flat_shape(met.shape))
                strength = strengths[term.slot]
                total = change * strength if total is None else total.add_(change, alpha=strength)
            yield total


def fuse(
    forms: Sequence[Dependent], slots: Sequence[int], first: int
) -> tuple[DependentGroup, tuple[Tensor, ...]]:
    """One group of all layers that depend on the weight, and their tensors."""
    terms: list[DependentTerm] = []
    tensors: list[Tensor] = []
    for form, slot in zip(forms, slots, strict=True):
        own = form.layer.tensors()
        bare = form.layer.with_tensors(dict.fromkeys(own))
        start = first + len(tensors)
        terms.append(DependentTerm(bare, tuple(own), start, slot, form.parameter, form.file, form.key))
        tensors += own.values()
    return DependentGroup(tuple(terms)), tuple(tensors)
