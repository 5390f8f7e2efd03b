"""LoHa: by Khatri-Rao factors, as a change of rank r1 * r2, or by the full matrix, formed in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ...changes.forms import Hadamard
from ...changes.operators import moved
from ...maths.scratch import IN_PASS, tile
from ...maths.tensors import compute_dtype
from ..geometry import Geometry
from .forward import Item, Prepared, Strengths, buffer, joined, plus_product, recorded

FORMS = (Hadamard,)
HadamardFactors = Sequence[tuple[tuple[Tensor, Tensor, Tensor, Tensor], float, int]]
"""For each layer w1_a, w1_b, w2_a, w2_b, its scale and the slot of its strength."""

TILE = 1 << 20
"""Elements of the full matrix that are formed at once."""

ELEMENT = 32
"""The cost of forming and storing one element of a matrix, in multiplications of a matrix product."""


class HadamardForward:
    """y += scale * strength * ((w1_a @ w1_b) * (w2_a @ w2_b)) x.

    With Khatri-Rao factors P[o, mn] = w1_a[o, m] w2_a[o, n], Q[mn, c] = w1_b[m, c] w2_b[n, c] it is
    P (Q x). P and Q are formed anew in each pass, in a buffer that every layer uses, or in fresh memory where
    the factors are trained: kept, they would need r / 2 times the memory of the layer's own factors, for
    rank r. Where this costs more than the full matrix, the full matrix is used, formed in tiles of rows
    (whole in training).
    """

    def __init__(
        self, geometry: Geometry, items: Sequence[Item], dtype: torch.dtype, device: torch.device
    ) -> None:
        wide = compute_dtype(dtype)
        self.geometry = geometry
        self.dtype = dtype
        self.factors = Prepared(items, partial(_factors, wide, device))
        self.reads = self.factors.reads
        self.ranks = [len(item.form.w1_b) * len(item.form.w2_b) for item in items]
        self.inner = sum(len(item.form.w1_b) + len(item.form.w2_b) for item in items)

    def add(self, y: Tensor, x: Tensor, strengths: Strengths) -> Tensor:
        rows = y.shape[1]
        positions = y.numel() // rows
        factors = self.factors()
        if self._khatri_rao_is_cheaper(rows, positions):
            return self._khatri_rao(y, x, factors, strengths)
        return self._tiled(y, x, factors, strengths)

    def _khatri_rao_is_cheaper(self, rows: int, positions: int) -> bool:
        """Whether P (Q x) costs less than the full matrix, for `rows` outputs at `positions` places.

        The cost is the number of multiplications, plus ELEMENT for each element that is formed.
        """
        both, full = rows + self.geometry.columns, rows * self.geometry.columns
        short = sum(self.ranks) * both * (positions + ELEMENT)
        long = full * (positions + self.inner + ELEMENT * len(self.ranks))
        return short <= long

    def _khatri_rao(self, y: Tensor, x: Tensor, factors: HadamardFactors, strengths: Strengths) -> Tensor:
        if _learn(factors):
            left, right = self._new(factors, strengths)
        else:
            left, right = self._buffered(y.shape[1], x, factors, strengths)
        hidden = self.geometry.product(x, right)
        if self.geometry.kernel:
            return y.add_(self.geometry.mix(hidden, left))
        return plus_product(y, hidden, left.T)

    def _new(self, factors: HadamardFactors, strengths: Strengths) -> tuple[Tensor, Tensor]:
        """P and Q at these strengths, in fresh memory, so that gradients flow to the layer's factors."""
        lefts: list[Tensor] = []
        rights: list[Tensor] = []
        for (w1_a, w1_b, w2_a, w2_b), scale, slot in factors:
            scaled = w1_a * (scale * strengths[slot])
            lefts.append((scaled[:, :, None] * w2_a[:, None, :]).flatten(1))
            rights.append((w1_b[:, None, :] * w2_b[None, :, :]).flatten(0, 1))
        return joined(lefts, 1).to(self.dtype), joined(rights, 0).to(self.dtype)

    def _buffered(
        self, rows: int, x: Tensor, factors: HadamardFactors, strengths: Strengths
    ) -> tuple[Tensor, Tensor]:
        """P and Q at these strengths, in the buffers that all layers use."""
        rank = sum(self.ranks)
        left = buffer("left", (rows, rank), x)
        right = buffer("right", (rank, self.geometry.columns), x)
        first = 0
        for ((w1_a, w1_b, w2_a, w2_b), scale, slot), own in zip(factors, self.ranks, strict=True):
            kept = slice(first, first + own)
            kept_left, kept_right = left[:, kept], right[kept]
            scaled = w1_a * (scale * strengths[slot])
            torch.mul(scaled[:, :, None], w2_a[:, None, :], out=kept_left.view(rows, w1_a.shape[1], -1))
            torch.mul(w1_b[:, None, :], w2_b[None, :, :], out=kept_right.view(len(w1_b), len(w2_b), -1))
            first += own
        return left, right

    def _tiled(self, y: Tensor, x: Tensor, factors: HadamardFactors, strengths: Strengths) -> Tensor:
        rows, columns = y.shape[1], self.geometry.columns
        learns = _learn(factors)
        step = rows if learns else max(1, tile(x.device, TILE, IN_PASS) // max(1, columns))
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            total: Tensor | None = None
            for (w1_a, w1_b, w2_a, w2_b), scale, slot in factors:
                strength = scale * strengths[slot]
                if learns:
                    w1 = Hadamard(w1_a, w1_b, w2_a, w2_b, strength).dense(w1_a.dtype, w1_a.device)
                    total = w1 if total is None else total + w1
                    continue
                w1 = torch.mm(w1_a[start:stop], w1_b)
                w2 = torch.mm(w2_a[start:stop] * strength, w2_b)
                total = w1.mul_(w2) if total is None else total.addcmul_(w1, w2)
            assert total is not None
            values = total.to(self.dtype)
            if self.geometry.kernel:
                y[:, start:stop].add_(self.geometry.product(x, values))
            elif learns:
                return plus_product(y, x, values.T)
            else:
                y[:, start:stop].addmm_(x, values.T)
        return y


def _learn(factors: HadamardFactors) -> bool:
    return recorded(*(factor for factors_of, _, _ in factors for factor in factors_of))


def _factors(dtype: torch.dtype, device: torch.device, items: Sequence[Item]) -> HadamardFactors:
    """The factors on the device and in the dtype that they are multiplied in."""
    forms: list[Hadamard] = [moved(item.form, device, dtype) for item in items]
    return [
        ((form.w1_a, form.w1_b, form.w2_a, form.w2_b), form.scale, item.slot)
        for form, item in zip(forms, items, strict=True)
    ]


FORWARD = HadamardForward
