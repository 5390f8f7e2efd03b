"""LoKr layers: outer products added through a 4-D view of the weight, never as a full matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..forms import Kronecker, product
from .group import Add, Product
from .scratch import scratch

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
    """W.view(l, k, i, j)[a, b, c, d] += sum_n scale_n * strength_n * w1_n[a, c] * w2_n[b, d].

    Layers of one factorisation share one product over n, (l i, N) @ (N, k j), a tile at a time.
    """

    terms: tuple[KroneckerTerm, ...]

    @property
    def summary(self) -> str:
        return f"{len(self.terms)} Kronecker, added through a 4-D view"

    def products(self, tensors: Sequence[Tensor]) -> list[Product]:
        return []

    def bind(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> Add:
        alike: dict[tuple[torch.Size, torch.Size, int], list[tuple[Tensor, Tensor]]] = {}
        for term in self.terms:
            w1, w2 = self.factors(term, tensors, dtype)
            scaled = w1 * (term.scale * strengths[term.slot])
            alike.setdefault((w1.shape, w2.shape, term.offset), []).append((scaled, w2))
        joined = [
            (torch.stack([w1 for w1, _ in pairs]), torch.stack([w2 for _, w2 in pairs]), offset)
            for (_, _, offset), pairs in alike.items()
        ]

        def add(rows: Tensor, first: int) -> None:
            for w1, w2, offset in joined:
                _add_rows(rows, first + offset, w1, w2)

        return add

    @staticmethod
    def factors(term: KroneckerTerm, tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """w1 (l, i) and w2 (k, j * prod(kernel)) of one layer."""
        second = term.first + term.w1_count
        w1 = product(tuple(tensors[term.first : second]), dtype, tensors[term.first].device)
        w2 = product(tuple(tensors[second : second + term.w2_count]), dtype, tensors[second].device)
        return w1, w2


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


def _add_rows(rows: Tensor, first: int, w1: Tensor, w2: Tensor) -> None:
    """Add rows `first` and following of sum_n kron(w1[n], w2[n]), with w1 (N, l, i) and w2 (N, k, j)."""
    count, k, inner = w2.shape
    for start, stop in _spans(first, first + len(rows), k):
        part = rows[start - first : stop - first]
        outer = w1[:, start // k : -(-stop // k)]
        w2_rows = w2[:, start % k : start % k + (stop - start)] if outer.shape[1] == 1 else w2
        blocks, columns, height = outer.shape[1], outer.shape[2], w2_rows.shape[1]
        view = part.view(blocks, height, columns, inner)
        if count == 1:
            view.addcmul_(outer[0, :, None, :, None], w2_rows[0, None, :, None, :])
            continue
        change = scratch("kronecker", (blocks * columns, height * inner), rows.dtype, rows.device)
        torch.mm(outer.reshape(count, -1).T, w2_rows.reshape(count, -1), out=change)
        view.add_(change.view(blocks, columns, height, inner).transpose(1, 2))


def _spans(start: int, stop: int, k: int) -> Iterator[tuple[int, int]]:
    """Cut a row range into at most three: part of one block of k rows, whole blocks, part of one."""
    head = min(stop, -(-start // k) * k)
    tail = max(head, stop // k * k)
    for first, last in ((start, head), (head, tail), (tail, stop)):
        if first < last:
            yield first, last
