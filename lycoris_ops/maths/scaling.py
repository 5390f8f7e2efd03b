"""Scale outputs by a factor for each channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .recompute import transformed
from .tensors import compute_dtype


def scaled(y: Tensor, extra: Tensor, bias: Tensor | None) -> Tensor:
    """y + (y - bias) * extra, for `extra` and `bias` that broadcast to y. A bias of None counts as 0."""
    if not (torch.is_grad_enabled() and extra.requires_grad):
        return _scaled(y, extra, bias)
    if y.dtype == compute_dtype(y.dtype):
        # The fewest operations forward and backward together. They call no Python in the backward pass.
        factor = extra + 1
        return y * factor if bias is None else torch.lerp(bias, y, factor)
    if transformed():
        return _scaled(y, extra, bias)
    learned: Any = _Scaled
    return learned.apply(y, extra, bias)


def _scaled(y: Tensor, extra: Tensor, bias: Tensor | None) -> Tensor:
    # In a narrow dtype 1 + extra would have fewer digits than extra.
    total = torch.addcmul(y, y, extra)
    return total if bias is None else total.addcmul_(bias, extra, value=-1)


class _Scaled(torch.autograd.Function):
    """`scaled`, with derivatives of any order by y and extra; the bias gets none."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, extra: Tensor, bias: Tensor | None) -> Tensor:
        ctx.bias = bias
        ctx.save_for_backward(y, extra)
        return _scaled(y, extra, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (y, extra), (gradient,) = ctx.saved_tensors, gradients
        to_y = torch.addcmul(gradient, gradient, extra) if ctx.needs_input_grad[0] else None
        met = y if ctx.bias is None else y - ctx.bias
        return to_y, (gradient * met).sum_to_size(extra.shape), None
