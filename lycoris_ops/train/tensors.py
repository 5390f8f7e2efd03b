"""Operations on many tensors at once, each in a single kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

# Any, because torch has no type hints for its functions on lists of tensors.
_torch: Any = torch


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors, without their graphs."""
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def copy_into(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy values into tensors in place."""
    _torch._foreach_copy_(list(targets), list(sources))


@torch.no_grad()
def move_towards(targets: Sequence[Tensor], goals: Sequence[Tensor], share: float) -> None:
    """Move tensors towards others in place, by a share of the way."""
    _torch._foreach_lerp_(list(targets), list(goals), share)


@torch.no_grad()
def scale(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply tensors in place."""
    _torch._foreach_mul_(list(tensors), factor)


def norm_of(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """The norm of all tensors together, on the device and in the dtype of `like`."""
    if not tensors:
        return torch.zeros_like(like)
    norms: list[Tensor] = _torch._foreach_norm(list(tensors))
    return cast("Tensor", _torch.stack([norm.to(like) for norm in norms]).norm())
