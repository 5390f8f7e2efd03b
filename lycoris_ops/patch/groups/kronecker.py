"""LoKr layers: outer products that are added through a 4-D view of the weight, never as a full matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...changes.forms import Kronecker
from ...maths.scratch import scratch
from .group import Add, Group

FORM = Kronecker


@dataclass(frozen=True)
class KroneckerTerm:
    """One layer: the places of its factors in the plan's tensors, and their scale. w1 and w2 are each one
    tensor or the product of two.
    """

    first: int
    """Index of w1's first tensor in the plan's tensors; w2's tensors follow."""
    w1_count: int
    """The number of tensors of w1: 1 or 2."""
    w2_count: int
    """The number of tensors of w2: 1 or 2."""
    scale: float
    slot: int
    """The layer's index in the plan's strengths."""

    def parts(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The tensors of w1, then those of w2."""
        return tensors[self.first : self.first + self.w1_count + self.w2_count]

    def factor(self, strengths: Sequence[float]) -> float:
        return self.scale * strengths[self.slot]


@dataclass(frozen=True)
class KroneckerGroup(Group):
    """W.view(l, k, i, j)[a, b, c, d] += sum_n scale_n * strength_n * w1_n[a, c] * w2_n[b, d].

    j counts the inputs of w2 times the kernel. One matrix product over n, (l i, N) @ (N, k j), adds N layers
    with the same factor shapes, some rows at a time.
    """

    terms: tuple[KroneckerTerm, ...]

    @property
    def summary(self) -> str:
        return f"{len(self.terms)} Kronecker, added through a 4-D view"

    def bind(self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype) -> Add:
        sets = [_joined(terms, tensors, strengths, dtype) for terms in self.sets(tensors)]

        def add(rows: Tensor, first: int) -> None:
            for w1, w2 in sets:
                _add(rows, first, w1, w2)

        return Add(add, once=len(sets) == 1)

    def sets(self, tensors: Sequence[Tensor]) -> list[list[KroneckerTerm]]:
        """Group the layers whose factors have the same shapes and dtypes."""
        alike: dict[tuple[Any, ...], list[KroneckerTerm]] = {}
        for term in self.terms:
            kinds = [(factor.shape, factor.dtype) for factor in term.parts(tensors)]
            alike.setdefault((term.w1_count, *kinds), []).append(term)
        return list(alike.values())


def _joined(
    terms: Sequence[KroneckerTerm], tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Stack the N layers of one of the `sets`: w1 (N, l, i) times scales and strengths, and w2 (N, k, j *
    prod(kernel)).
    """
    # Stack first, so that a few calls convert and multiply the small tensors of all layers.
    stacks = [
        torch.stack(factor).to(dtype) for factor in zip(*(term.parts(tensors) for term in terms), strict=True)
    ]
    count = terms[0].w1_count
    w1, w2 = (
        factors[0] if len(factors) == 1 else torch.bmm(*factors)
        for factors in (stacks[:count], stacks[count:])
    )
    scales = torch.tensor([term.factor(strengths) for term in terms], dtype=w1.dtype).to(w1.device)
    return w1 * scales[:, None, None], w2


def fuse(
    forms: Sequence[Kronecker], slots: Sequence[int], first: int
) -> tuple[KroneckerGroup, tuple[Tensor, ...]]:
    """A group with all Kronecker forms, and their tensors."""
    terms: list[KroneckerTerm] = []
    tensors: list[Tensor] = []
    for form, slot in zip(forms, slots, strict=True):
        # Only bypass layers have scaled forms.
        assert form.rows is None and form.columns is None, "the form of a layer is not scaled"
        position = first + len(tensors)
        terms.append(KroneckerTerm(position, len(form.w1), len(form.w2), form.scale, slot))
        tensors += [*form.w1, *form.w2]
    return KroneckerGroup(tuple(terms)), tuple(tensors)


def _add(rows: Tensor, first: int, w1: Tensor, w2: Tensor) -> None:
    """Add to `rows` those of sum_n kron(w1[n], w2[n]) that begin at `first`; w1 (N, l, i), w2 (N, k, j)."""
    count, k, j = w2.shape
    for start, stop in _spans(first, first + len(rows), k):
        outer = w1[:, start // k : -(-stop // k)]
        inner = w2[:, start % k : start % k + stop - start] if outer.shape[1] == 1 else w2
        blocks, columns, height = outer.shape[1], outer.shape[2], inner.shape[1]
        view = rows[start - first : stop - first].view(blocks, height, columns, j)
        # A single layer needs no buffer for its change.
        if count == 1:
            view.addcmul_(outer[0, :, None, :, None], inner[0, None, :, None, :])
            continue
        change = scratch("kronecker", (blocks * columns, height * j), rows.dtype, rows.device)
        torch.mm(outer.reshape(count, -1).T, inner.reshape(count, -1), out=change)
        view.add_(change.view(blocks, columns, height, j).transpose(1, 2))


def _spans(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut rows `start` to `stop` where blocks of `size` rows begin, into at most three ranges.

    The ranges are the end of a block, whole blocks, and the beginning of a block.
    """
    head = min(stop, -(-start // size) * size)
    tail = max(head, stop // size * size)
    for first, last in ((start, head), (head, tail), (tail, stop)):
        if first < last:
            yield first, last
