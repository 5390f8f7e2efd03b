"""Recompute large but cheap results in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.autograd import forward_ad

_checkpoint = cast("Any", torch.utils.checkpoint).checkpoint
# torch has no public functions for these.
_own, _levels = cast("Any", torch)._C, cast("Any", forward_ad)


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors), where autograd keeps only the arguments and recomputes the rest in the backward
    pass.

    The function must not draw random numbers or write to its arguments.
    """
    if not torch.is_grad_enabled():
        return function(*tensors)
    return _checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)


def by_torch_func() -> bool:
    """Whether a torch.func transform is active. Under one, no tensor shows `requires_grad`."""
    return _own._are_functorch_transforms_active()


def transformed() -> bool:
    """Whether torch.compile, a torch.func transform or forward-mode differentiation is active.

    All of them need plain operations, and decide themselves what to recompute.
    """
    by_func = _own._are_functorch_transforms_active()
    return torch.compiler.is_compiling() or by_func or _levels._current_level >= 0


def hadamard(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, scale: float) -> Tensor:
    """scale * (w1_a @ w1_b) * (w2_a @ w2_b), with w?_a (O, r) and w?_b (r, K).

    Autograd saves only the factors. Plain autograd would save both products, each as large as the result.
    torch's checkpoint saves as little, but takes 1.5 to 4 times as long.
    """
    factors = (w1_a, w1_b, w2_a, w2_b)
    if transformed() or not any(factor.requires_grad for factor in factors):
        return _hadamard(*factors, scale)
    learned: Any = _Hadamard
    return learned.apply(*factors, scale)


def _hadamard(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, scale: float) -> Tensor:
    return ((scale * w1_a) @ w1_b).mul(w2_a @ w2_b)


class _Hadamard(torch.autograd.Function):
    """`_hadamard`, with derivatives of any order."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *factors, ctx.scale = inputs
        ctx.save_for_backward(*factors)
        return _hadamard(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        first = gradients[0] * ((ctx.scale * w2_a) @ w2_b)
        second = gradients[0] * ((ctx.scale * w1_a) @ w1_b)
        return first @ w1_b.T, w1_a.T @ first, second @ w2_b.T, w2_a.T @ second, None
