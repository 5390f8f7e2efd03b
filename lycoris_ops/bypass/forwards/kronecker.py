"""LoKr: the two factors one after the other, the product of their sizes is never formed.

The cost is that of the smaller dimensions: i + k products for an output and token where the full
matrix takes i * j, so that no size asks for another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...changes.forms import Kronecker, product
from ...maths.tensors import compute_dtype
from ..geometry import Geometry
from .forward import Item, Strengths

FORMS = (Kronecker,)


@dataclass(frozen=True)
class _Factors:
    """w1 (l, i) in float32; w2 (k, j * prod(kernel)), or left @ right of it; which rows are meant."""

    w1: Tensor
    left: Tensor | None
    right: Tensor
    scale: float
    slot: int
    skipped: int
    """Rows of the product before the first that is meant."""
    rows: Tensor | None
    columns: Tensor | None


class KroneckerForward:
    """y.view(l, k) += scale * strength * w1 @ x.view(i, j) @ w2^T for each token.

    A low-rank w2 = left @ right stays so: right, w1, left, in the order of the smallest results. On a
    convolution w2 has the kernel, and w1 mixes what it gives for each of the i parts of the channels.
    """

    def __init__(
        self, geometry: Geometry, items: Sequence[Item], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.geometry = geometry
        self.dtype = dtype
        self.factors = [_factors(item, dtype, device) for item in items]

    def add(self, y: Tensor, x: Tensor, strengths: Strengths) -> None:
        for one in self.factors:
            w1 = (one.w1 * (one.scale * strengths[one.slot])).to(self.dtype)
            met = x if one.columns is None else x * self.geometry.per_channel(one.columns)
            if self.geometry.kernel:
                self._add(y, self._convolved(met, w1, one), one)
            elif one.rows is None and not one.skipped and y.is_contiguous() and y.shape[1] == _size(one):
                _multiply_into(y, met, w1, one)
            else:
                change = torch.zeros(len(y), _size(one), dtype=y.dtype, device=y.device)
                _multiply_into(change, met, w1, one)
                self._add(y, change, one)

    def _convolved(self, x: Tensor, w1: Tensor, one: _Factors) -> Tensor:
        batch, parts = len(x), w1.shape[1]
        inner = self.geometry.product(x.reshape(batch * parts, -1, *x.shape[2:]), one.right)
        places = inner.shape[2:]
        mixed = torch.matmul(w1, inner.reshape(batch, parts, -1))
        if one.left is None:
            return mixed.view(batch, -1, *places)
        full = torch.matmul(one.left, mixed.view(batch * len(w1), one.right.shape[0], -1))
        return full.view(batch, -1, *places)

    def _add(self, y: Tensor, change: Tensor, one: _Factors) -> None:
        """Add the rows that are meant."""
        kept = change[:, one.skipped : one.skipped + y.shape[1]]
        y.add_(kept if one.rows is None else kept * self.geometry.per_channel(one.rows))


def _factors(item: Item, dtype: torch.dtype, device: torch.device) -> _Factors:
    form: Kronecker = item.form
    wide = compute_dtype(dtype)
    w1 = product(form.w1, wide, device)
    k = len(form.w2[0])
    start, stop = form.window or (0, len(w1) * k)
    w1 = w1[start // k : -(-stop // k)]
    split = len(form.w2) == 2 and len(form.w2[1]) < k
    right = form.w2[1].to(device, dtype) if split else product(form.w2, wide, device).to(dtype)
    return _Factors(
        w1=w1,
        left=form.w2[0].to(device, dtype).contiguous() if split else None,
        right=right.contiguous(),
        scale=form.scale,
        slot=item.slot,
        skipped=start % k,
        rows=None if form.rows is None else form.rows.to(device, dtype),
        columns=None if form.columns is None else form.columns.to(device, dtype),
    )


def _size(one: _Factors) -> int:
    """Rows of the product."""
    return len(one.w1) * len(one.right if one.left is None else one.left)


def _multiply_into(y: Tensor, x: Tensor, w1: Tensor, one: _Factors) -> None:
    """Add w1 @ x.view(i, j) @ w2^T for each token to contiguous y."""
    tokens, (outer, parts) = len(x), w1.shape
    k, j = one.right.shape
    if one.left is not None:
        inner = torch.mm(x.view(tokens * parts, j), one.right.T)
        mixed = torch.matmul(w1, inner.view(tokens, parts, k))
        y.view(tokens * outer, -1).addmm_(mixed.view(tokens * outer, k), one.left.T)
    elif outer * (parts + k) * j <= parts * (j + outer) * k:
        mixed = torch.matmul(w1, x.view(tokens, parts, j))
        y.view(tokens * outer, k).addmm_(mixed.view(tokens * outer, j), one.right.T)
    else:
        inner = torch.mm(x.view(tokens * parts, j), one.right.T)
        y.view(tokens, outer, k).baddbmm_(w1.expand(tokens, outer, parts), inner.view(tokens, parts, k))


FORWARD = KroneckerForward
