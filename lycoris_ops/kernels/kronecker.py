"""LoKr layers: an outer product added through a 4-D view of the weight, never as a full matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..forms import Kronecker, product
from .group import Add

FORM = Kronecker


@dataclass(frozen=True)
class KroneckerTerm:
    """Where one layer's factors stand in the plan's tensors, and how many each factor has."""

    first: int
    w1_count: int
    w2_count: int
    scale: float
    slot: int
    offset: int
    """The row of the product that is the first one meant."""


@dataclass(frozen=True)
class KroneckerGroup:
    """W.view(l, k, i, j)[a, b, c, d] += scale * strength * w1[a, c] * w2[b, d], by `addcmul_`."""

    terms: tuple[KroneckerTerm, ...]

    @property
    def summary(self) -> str:
        return f"{len(self.terms)} Kronecker, added through a 4-D view"

    def bind(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> Add:
        factors: list[tuple[Tensor, Tensor, int]] = []
        for term in self.terms:
            second = term.first + term.w1_count
            w1 = _matrix(tensors[term.first : second], dtype)
            w2 = _matrix(tensors[second : second + term.w2_count], dtype)
            # A new tensor: the factor itself may be the file's, shared with other plans.
            factors.append((w1 * (term.scale * strengths[term.slot]), w2, term.offset))

        def add(rows: Tensor, first: int) -> None:
            for w1, w2, offset in factors:
                _add_rows(rows, first + offset, w1, w2)

        return add


def fuse(
    forms: Sequence[Kronecker], slots: Sequence[int], first: int
) -> tuple[KroneckerGroup, tuple[Tensor, ...]]:
    """One group of all Kronecker forms, and their tensors."""
    terms: list[KroneckerTerm] = []
    tensors: list[Tensor] = []
    for form, slot in zip(forms, slots, strict=True):
        position = first + len(tensors)
        offset = form.window[0] if form.window else 0
        terms.append(KroneckerTerm(position, len(form.w1), len(form.w2), form.scale, slot, offset))
        tensors += [*form.w1, *form.w2]
    return KroneckerGroup(tuple(terms)), tuple(tensors)


def _matrix(factors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return product(tuple(factors), dtype, factors[0].device)


def _add_rows(rows: Tensor, first: int, w1: Tensor, w2: Tensor) -> None:
    """Add rows `first` and following of kron(w1, w2)."""
    k, inner = w2.shape
    for start, stop in _spans(first, first + len(rows), k):
        part = rows[start - first : stop - first]
        outer = w1[start // k : -(-stop // k)]
        w2_rows = w2[start % k : start % k + (stop - start)] if len(outer) == 1 else w2
        view = part.view(len(outer), len(w2_rows), w1.shape[1], inner)
        view.addcmul_(outer[:, None, :, None], w2_rows[None, :, None, :])


def _spans(start: int, stop: int, k: int) -> Iterator[tuple[int, int]]:
    """Cut a row range into at most three: part of one block of k rows, whole blocks, part of one."""
    head = min(stop, -(-start // k) * k)
    tail = max(head, stop // k * k)
    for first, last in ((start, head), (head, tail), (tail, stop)):
        if first < last:
            yield first, last
