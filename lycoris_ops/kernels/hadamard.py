"""LoHa layers: by Khatri-Rao factors where the rank is small, by tiles of both products elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..forms import Hadamard
from .group import Add, Product, row_tiles
from .scratch import scratch

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

    def as_products(self, tensors: Sequence[Tensor]) -> list[Product]:
        """Every layer by its Khatri-Rao factors."""
        return [_product(term, tensors) for term in self.terms]

    def products(self, tensors: Sequence[Tensor]) -> list[Product]:
        return [_product(term, tensors) for term in self.terms if term.khatri_rao]

    def bind(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> Add | None:
        terms = [
            (
                [tensor.to(dtype) for tensor in tensors[term.first : term.first + 4]],
                term.scale * strengths[term.slot],
            )
            for term in self.terms
            if not term.khatri_rao
        ]
        if not terms:
            return None

        def add(rows: Tensor, first: int) -> None:
            for start, stop in row_tiles(len(rows), rows.shape[1]):
                part = rows[start:stop]
                one = scratch("hadamard one", part.shape, dtype, rows.device)
                two = scratch("hadamard two", part.shape, dtype, rows.device)
                for (w1_a, w1_b, w2_a, w2_b), factor in terms:
                    torch.mm(w1_a[first + start : first + stop], w1_b, out=one)
                    torch.mm(w2_a[first + start : first + stop], w2_b, out=two)
                    part.addcmul_(one, two, value=factor)

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


def _product(term: HadamardTerm, tensors: Sequence[Tensor]) -> Product:
    w1_a, w1_b, w2_a, w2_b = tensors[term.first : term.first + 4]
    return Product((w1_a, w2_a), (w1_b, w2_b), term.scale, term.slot)
