"""LoKr: the input is multiplied by the two factors in turn, so that their Kronecker product is never formed.

For a square weight (l = i, k = j) each output of a token takes i + k multiplications, where the full matrix
takes i * j. So the full matrix is never better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...changes.forms import Kronecker, product
from ...maths.recompute import transformed
from ...maths.tensors import compute_dtype
from ..geometry import Geometry
from .forward import Item, Prepared, Strengths, plus_product, recorded

FORMS = (Kronecker,)

LEARNING = 1.5
"""In training the input is multiplied by w2 first, unless that order takes more than LEARNING times the
multiplications of the other.

With w2 first only the input is kept for the backward pass. On a CPU this is a tenth faster at equal numbers
of multiplications."""
PIECE = 1 << 18
"""How many values of the input are worked on at once in the backward pass.

For a smaller input the product with w2 is kept, which makes the backward pass twice as fast."""


@dataclass(frozen=True)
class _Factors:
    """One layer: w1 (l, i) in float32 or float64, w2 (k, j * prod(kernel)) as `right` or as left @ right.

    `rows` and `columns` scale the rows and the input channels of the product; None scales nothing.
    """

    w1: Tensor
    left: Tensor | None
    right: Tensor
    scale: float
    slot: int
    rows: Tensor | None
    columns: Tensor | None


class KroneckerForward:
    """y.view(l, k) += scale * strength * w1 @ x.view(i, j) @ w2^T for each token.

    A low-rank w2 = left @ right is not multiplied out: x goes through right, w1 and left, so that w1 works on
    the smallest result. On a convolution w2 is convolved with each of the i parts of the channels, and w1
    mixes the results.
    """

    def __init__(
        self, geometry: Geometry, items: Sequence[Item], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.geometry = geometry
        self.dtype = dtype
        self.factors = Prepared(items, partial(_all_factors, dtype, device))
        self.reads = self.factors.reads

    def add(self, y: Tensor, x: Tensor, strengths: Strengths) -> Tensor:
        for factors in self.factors():
            w1, alpha = factors.w1, factors.scale * strengths[factors.slot]
            if self.dtype == torch.float16:
                # Scale before the product, which could overflow float16 otherwise.
                w1, alpha = w1 * alpha, 1.0
            w1 = w1.to(self.dtype)
            met = x if factors.columns is None else x * self.geometry.per_channel(factors.columns)
            if self.geometry.kernel:
                self._add(y, self._convolved(met, w1, factors), factors, alpha)
            elif factors.rows is None and y.is_contiguous():
                # The last matrix product can add to y directly.
                y = _plus_product(y, met, w1, factors, alpha)
            else:
                change = torch.zeros(len(y), _size(factors), dtype=y.dtype, device=y.device)
                self._add(y, _plus_product(change, met, w1, factors, 1.0), factors, alpha)
        return y

    def _convolved(self, x: Tensor, w1: Tensor, factors: _Factors) -> Tensor:
        batch, blocks = len(x), w1.shape[1]
        # Each part of the channels is convolved as one more item of the batch.
        cut = x.reshape(batch * blocks, x.shape[1] // blocks, *x.shape[2:])
        inner = self.geometry.product(cut, factors.right)
        positions, rest = inner.shape[2:], inner.flatten(1)
        mixed = _mixed(w1, rest.view(batch, blocks, rest.shape[1]))
        if factors.left is None:
            return mixed.view(batch, _size(factors), *positions)
        hidden = mixed.view(batch * len(w1), len(factors.right), positions.numel())
        return torch.matmul(factors.left, hidden).view(batch, _size(factors), *positions)

    def _add(self, y: Tensor, change: Tensor, factors: _Factors, alpha: float) -> None:
        """Add alpha times the change, with the factors of its rows."""
        y.add_(
            change if factors.rows is None else change * self.geometry.per_channel(factors.rows), alpha=alpha
        )


def _all_factors(dtype: torch.dtype, device: torch.device, items: Sequence[Item]) -> list[_Factors]:
    return [_factors(item, dtype, device) for item in items]


def _factors(item: Item, dtype: torch.dtype, device: torch.device) -> _Factors:
    form: Kronecker = item.form
    wide = compute_dtype(dtype)
    k = len(form.w2[0])
    # With a rank of k or more, two factors take more multiplications than their product.
    split = len(form.w2) == 2 and len(form.w2[1]) < k
    right = form.w2[1].to(device, dtype) if split else product(form.w2, wide, device).to(dtype)
    return _Factors(
        w1=product(form.w1, wide, device),
        left=form.w2[0].to(device, dtype).contiguous() if split else None,
        right=right.contiguous(),
        scale=form.scale,
        slot=item.slot,
        rows=None if form.rows is None else form.rows.to(device, dtype),
        columns=None if form.columns is None else form.columns.to(device, dtype),
    )


def _size(factors: _Factors) -> int:
    """The number of rows of the product."""
    return len(factors.w1) * len(factors.right if factors.left is None else factors.left)


def _plus_product(y: Tensor, x: Tensor, w1: Tensor, factors: _Factors, alpha: float) -> Tensor:
    """y, which must be contiguous, with alpha * w1 @ x.view(i, j) @ w2^T added for each token.

    A full w2 is multiplied before or after w1, whichever takes fewer multiplications: l (i + k) j with w1
    first, i (j + l) k with w2 first; in training see LEARNING.
    """
    tokens, (outer, blocks), (k, j) = x.shape[0], w1.shape, factors.right.shape
    learns = recorded(y, x, w1, factors.right)
    if factors.left is not None:
        inner = torch.mm(x.view(tokens * blocks, j), factors.right.T)
        mixed = _mixed(w1, inner.view(tokens, blocks, k))
        total = y.view(tokens * outer, len(factors.left))
        changed = plus_product(total, mixed.view(tokens * outer, k), factors.left.T, alpha)
    elif (LEARNING if learns else 1) * outer * (blocks + k) * j <= blocks * (j + outer) * k:
        mixed = _mixed(w1, x.view(tokens, blocks, j))
        changed = plus_product(
            y.view(tokens * outer, k), mixed.view(tokens * outer, j), factors.right.T, alpha
        )
    elif not learns or transformed() or x.numel() < PIECE:
        changed = plus_product(*_operands(y, x, w1, factors.right), alpha)
    else:
        learned: Any = _InnerFirst
        changed = learned.apply(y.view(tokens, outer, k), x, w1, factors.right, alpha)
    return changed.view(y.shape)


def _mixed(w1: Tensor, vectors: Tensor) -> Tensor:
    """w1 @ x for each x (i, n) of `vectors`; `matmul` would copy all of them where w1 requires gradients."""
    return torch.bmm(w1.expand(vectors.shape[0], *w1.shape), vectors)


def _operands(y: Tensor, x: Tensor, w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, w1 and x.view(i, j) @ w2^T for each token, as `baddbmm` takes them."""
    tokens, (outer, blocks), (k, j) = x.shape[0], w1.shape, w2.shape
    inner = torch.mm(x.view(tokens * blocks, j), w2.T).view(tokens, blocks, k)
    return y.view(tokens, outer, k), w1.expand(tokens, outer, blocks), inner


class _InnerFirst(torch.autograd.Function):
    """y (n, l, k) + alpha * w1 @ x.view(i, j) @ w2^T for each of n tokens.

    It saves x and the factors for the backward pass. Autograd would save the product with w2 too, which is as
    large as x and quick to compute again.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, ctx.alpha = inputs
        ctx.save_for_backward(*tensors[1:])
        return torch.baddbmm(*_operands(*tensors), alpha=ctx.alpha)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, w1, w2), (gradient,) = ctx.saved_tensors, gradients
        tokens, blocks, (k, j) = len(x), w1.shape[1], w2.shape
        flat, cut = gradient.contiguous(), x.view(tokens * blocks, j)
        for_x = for_w1 = for_w2 = None
        if ctx.needs_input_grad[2]:
            # In pieces that stay in the cache of a CPU, added up in float32 or float64.
            step = max(1, PIECE // x.shape[1]) if x.device.type == "cpu" else tokens
            for_w1 = torch.zeros(w1.shape, dtype=compute_dtype(w1.dtype), device=w1.device)
            for start in range(0, tokens, step):
                inner = torch.mm(cut[start * blocks : (start + step) * blocks], w2.T).view(-1, blocks, k)
                products = torch.bmm(flat[start : start + step], inner.transpose(1, 2))
                for_w1 = for_w1 + products.sum(0, dtype=for_w1.dtype)
            for_w1 = (ctx.alpha * for_w1).to(w1.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            mixed = _mixed(ctx.alpha * w1.T, flat).view(tokens * blocks, k)
            for_x = torch.mm(mixed, w2).view(x.shape)
            for_w2 = torch.mm(mixed.T, cut)
        return gradient, for_x, for_w1, for_w2, None


FORWARD = KroneckerForward
