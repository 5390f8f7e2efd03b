"""Changes that depend on the weight they meet (DoRA, OFT, IA3 ...): the layers compute them themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...algorithms import Layer
from ...algorithms.base import Dependent, Parameter
from ...errors import located
from ...maths.tensors import largest_on_device
from ..overflow import check_sum, doubtful
from .group import Add, Group

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
class DependentGroup(Group):
    """W += the sum of strength_n * delta_n(W), each delta computed from the weight before the patch.

    Nothing is added to the weight before the sum is complete: an addition would change the weight that the
    next delta is computed from. The sum is checked for overflow first.
    """

    terms: tuple[DependentTerm, ...]

    @property
    def summary(self) -> str:
        kinds = ", ".join(sorted({term.bare.algorithm for term in self.terms}))
        return f"{len(self.terms)} that depend on the weight ({kinds}), one by one"

    def bind(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> Add:
        met = weight.to(dtype)
        total = torch.zeros(len(weight), met.numel() // len(weight), dtype=dtype, device=weight.device)
        sizes: list[Tensor] = []
        for term in self.terms:
            self._add(total, term, tensors, strengths, met)
            sizes.append(largest_on_device(total))
        if doubtful(total, sizes, weight):
            # Again, to find the layer after which the sum overflows.
            total.zero_()
            for term in self.terms:
                self._add(total, term, tensors, strengths, met)
                with located(file=term.file, key=term.key):
                    check_sum(total, weight)
        return Add.of(total)

    def _add(
        self,
        total: Tensor,
        term: DependentTerm,
        tensors: Sequence[Tensor],
        strengths: Sequence[float],
        met: Tensor,
    ) -> None:
        with located(file=term.file, key=term.key):
            change = term.form(tensors).change(met).reshape(total.shape)
            total.add_(change, alpha=strengths[term.slot])


def fuse(
    forms: Sequence[Dependent], slots: Sequence[int], first: int
) -> tuple[DependentGroup, tuple[Tensor, ...]]:
    """One group of all layers that depend on the weight, and their tensors."""
    terms: list[DependentTerm] = []
    tensors: list[Tensor] = []
    for form, slot in zip(forms, slots, strict=True):
        own = form.layer.tensors()
        bare = form.layer.with_tensors(dict.fromkeys(own))
        place = first + len(tensors)
        terms.append(DependentTerm(bare, tuple(own), place, slot, form.parameter, form.file, form.key))
        tensors += own.values()
    return DependentGroup(tuple(terms)), tuple(tensors)
