"""Computing again in the backward pass what is large and quickly computed, in place of keeping it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.utils.checkpoint
from torch import Tensor

_checkpoint = cast("Any", torch.utils.checkpoint).checkpoint


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors), of which autograd keeps the arguments alone.

    The function must draw no random numbers and write to none of its arguments.
    """
    if not torch.is_grad_enabled():
        return function(*tensors)
    return _checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
