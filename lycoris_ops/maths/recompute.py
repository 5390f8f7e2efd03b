"""Computing again in the backward pass what is large and quickly computed, in place of keeping it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.utils.checkpoint
from torch import Tensor

_checkpoint = cast("Any", torch.utils.checkpoint).checkpoint


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors); autograd keeps the arguments alone and computes it again in the backward pass.

    The function must draw no random numbers and write to none of its arguments.
    """
    if not torch.is_grad_enabled():
        return function(*tensors)
    return _checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)


def by_torch_func() -> bool:
    """Whether a transform of torch.func is at work, in which no tensor says that it requires a gradient."""
    # torch has no public name for the question.
    return cast("Any", torch)._C._are_functorch_transforms_active()


def transformed() -> bool:
    """Whether torch.compile or a transform of torch.func is at work, which take plain operations alone.

    They, or the compiler, decide themselves what is computed again.
    """
    return torch.compiler.is_compiling() or by_torch_func()


def hadamard(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, scale: float) -> Tensor:
    """scale * (w1_a @ w1_b) * (w2_a @ w2_b); autograd keeps the factors alone.

    It would keep both matrices, which are as large as the result.
    """

    def formed(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
        return ((scale * w1_a) @ w1_b).mul(w2_a @ w2_b)

    factors = (w1_a, w1_b, w2_a, w2_b)
    learned = any(factor.requires_grad for factor in factors) and not transformed()
    return recomputed(formed, *factors) if learned else formed(*factors)
