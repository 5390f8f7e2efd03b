"""LoHa layers: by Khatri-Rao factors where the rank is small, by tiles of both products elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..forms import Hadamard
from .group import Add, row_tiles

FORM = Hadamard

KHATRI_RAO_RANK = 64
"""Largest rank of the Khatri-Rao product (r1 * r2) for which one multiplication by it is cheaper
than two by the factors and a pass that multiplies them: 2 * r1 * r2 flops an element against
2 * (r1 + r2) and three passes over memory. Measured on two cores: even at r = 8, behind at r = 16."""


@dataclass(frozen=True)
class HadamardTerm:
    """Where one layer's four factors start in the plan's tensors."""

    first: int
    scale: float
    slot: int
    khatri_rao: bool


@dataclass(frozen=True)
class HadamardGroup:
    """W += scale * strength * (w1_a @ w1_b) * (w2_a @ w2_b).

    The Khatri-Rao form of the same is P @ Q with P[o, mn] = w1_a[o, m] w2_a[o, n] and
    Q[mn, c] = w1_b[m, c] w2_b[n, c], which needs no matrix of the weight's size.
    """

    terms: tuple[HadamardTerm, ...]

    @property
    def summary(self) -> str:
        short = sum(term.khatri_rao for term in self.terms)
        return (
            f"{len(self.terms)} Hadamard, {short} by Khatri-Rao factors, {len(self.terms) - short} by tiles"
        )

    def bind(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> Add:
        adds: list[Add] = []
        for term in self.terms:
            w1_a, w1_b, w2_a, w2_b = (tensor.to(dtype) for tensor in tensors[term.first : term.first + 4])
            bind = _khatri_rao if term.khatri_rao else _tiled
            adds.append(bind(w1_a, w1_b, w2_a, w2_b, term.scale * strengths[term.slot]))

        def add(rows: Tensor, first: int) -> None:
            for one in adds:
                one(rows, first)

        return add


def fuse(
    forms: Sequence[Hadamard], slots: Sequence[int], first: int
) -> tuple[HadamardGroup, tuple[Tensor, ...]]:
    """One group of all Hadamard forms, and their tensors."""
    terms: list[HadamardTerm] = []
    tensors: list[Tensor] = []
    for form, slot in zip(forms, slots, strict=True):
        rank = form.w1_b.shape[0] * form.w2_b.shape[0]
        terms.append(HadamardTerm(first + len(tensors), form.scale, slot, rank <= KHATRI_RAO_RANK))
        tensors += [form.w1_a, form.w1_b, form.w2_a, form.w2_b]
    return HadamardGroup(tuple(terms)), tuple(tensors)


def _khatri_rao(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, factor: float) -> Add:
    left = (w1_a[:, :, None] * w2_a[:, None, :]).flatten(1).mul_(factor)
    right = (w1_b[:, None, :] * w2_b[None, :, :]).flatten(0, 1)

    def add(rows: Tensor, first: int) -> None:
        rows.addmm_(left[first : first + len(rows)], right)

    return add


def _tiled(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, factor: float) -> Add:
    def add(rows: Tensor, first: int) -> None:
        for start, stop in row_tiles(len(rows), rows.shape[1]):
            one = w1_a[first + start : first + stop] @ w1_b
            two = w2_a[first + start : first + stop] @ w2_b
            rows[start:stop].addcmul_(one, two, value=factor)

    return add
