"""Skew-symmetric blocks, and the series that makes rotations of them, in few operations on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .recompute import transformed
from .tensors import is_plain

LARGE = 256
"""Larger blocks are formed without `_indices`, which takes 16 bytes a value in float32."""
Indices = tuple[Tensor, Tensor, Tensor]
MOST = 16
"""The most entries of _KEPT."""
_KEPT: dict[tuple[int, torch.dtype, torch.device], Indices] = {}


def skew_symmetric(triangles: Tensor, size: int) -> Tensor:
    """Q (n, b, b) with Q^T = -Q, from the values above the diagonals (n, b * (b - 1) / 2), row by row."""
    if transformed() or size > LARGE or not triangles.requires_grad or not is_plain(triangles):
        return _plain_skew(triangles, size)
    learned: Any = _Skew
    return learned.apply(triangles, size)


def series(skew: Tensor, factors: Sequence[float]) -> Tensor:
    """The sum of factors[k - 1] * Q^k over k from 1, for each Q of `skew` (n, b, b) with Q^T = -Q."""
    if not factors:
        return torch.zeros_like(skew)
    if transformed() or not skew.requires_grad:
        return _sums(skew, factors)[-1]
    learned: Any = _Series
    return learned.apply(skew, tuple(factors))


def _sums(skew: Tensor, factors: Sequence[float]) -> list[Tensor]:
    """The partial sums of Horner's scheme, which begins with the last factor; the whole sum comes last."""
    sums = [skew if factors[-1] == 1 else skew * factors[-1]]
    for factor in reversed(factors[:-1]):
        sums.append(torch.baddbmm(skew, skew, sums[-1], beta=factor))
    return sums


class _Series(torch.autograd.Function):
    """`series`, with derivatives of any order."""

    @staticmethod
    def forward(ctx: Any, skew: Tensor, factors: Sequence[float]) -> Tensor:
        *sums, last = _sums(skew, factors)
        ctx.factors = factors
        ctx.save_for_backward(skew, *sums)
        return last

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (skew, *sums), (gradient,) = ctx.saved_tensors, gradients
        if torch.is_grad_enabled():
            # Higher derivatives come from plain operations.
            formed = _sums(skew, ctx.factors)[-1]
            (further,) = torch.autograd.grad(formed, [skew], gradient, create_graph=True)
            return further, None
        back = skew.transpose(1, 2)
        total: Tensor | None = None
        # A step is factor * Q + Q @ sum.
        for factor, inner in zip(ctx.factors, reversed(sums), strict=False):
            beside = gradient if total is None else total
            share = factor if total is None else 1.0
            term = torch.baddbmm(beside, gradient, inner.transpose(1, 2), beta=share)
            total = term if total is None else term.add_(gradient, alpha=factor)
            gradient = torch.bmm(back, gradient)
        last = ctx.factors[-1]
        if total is None:
            return gradient * last, None
        return total.add_(gradient, alpha=last), None


def _plain_skew(triangles: Tensor, size: int) -> Tensor:
    row, column = torch.triu_indices(size, size, 1, device=triangles.device)
    upper = triangles.new_zeros(len(triangles), size, size)
    upper[:, row, column] = triangles
    return upper - upper.transpose(1, 2)


def _indices(size: int, dtype: torch.dtype, device: torch.device) -> Indices:
    """The triangle index and the sign of each value of a block; the block index of each triangle value."""
    key = (size, dtype, device)
    if key in _KEPT:
        return _KEPT[key]
    signed = _new_indices(*key)
    # Tensors made under a mode, such as fake ones, are valid only under it.
    if all(type(tensor) is Tensor for tensor in signed):
        if len(_KEPT) >= MOST:
            _KEPT.clear()
        _KEPT[key] = signed
    return signed


def _new_indices(size: int, dtype: torch.dtype, device: torch.device) -> Indices:
    with torch.inference_mode(False):
        row, column = torch.triu_indices(size, size, 1)
        indices, signs = torch.zeros(size, size, dtype=torch.int64), torch.zeros(size, size, dtype=dtype)
        indices[row, column] = indices[column, row] = torch.arange(len(row))
        signs[row, column], signs[column, row] = 1, -1
        signed = (indices.flatten(), signs.flatten(), row * size + column)
        return signed[0].to(device), signed[1].to(device), signed[2].to(device)


class _Skew(torch.autograd.Function):
    """`skew_symmetric`, with derivatives of any order."""

    @staticmethod
    def forward(ctx: Any, triangles: Tensor, size: int) -> Tensor:
        ctx.size = size
        indices, signs, _ = _indices(size, triangles.dtype, triangles.device)
        return triangles.index_select(1, indices).mul_(signs).view(-1, size, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        _, _, upper = _indices(ctx.size, gradient.dtype, gradient.device)
        # Each value is above the diagonal, and with the other sign below it.
        return (gradient - gradient.transpose(1, 2)).flatten(1).index_select(1, upper), None
