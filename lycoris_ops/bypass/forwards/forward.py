"""What the forward passes of all forms have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...maths.scratch import scratch
from ...maths.shapes import Shape

Strengths = Sequence[float]


@dataclass(frozen=True)
class Item:
    """One form of one layer: added at `strengths[slot]`."""

    form: Any
    slot: int


class Forward(Protocol):
    """All forms of one kind that change the same outputs of a module."""

    def add(self, y: Tensor, x: Tensor, strengths: Strengths) -> None:
        """Add the change to those outputs, in place.

        Without a kernel both are matrices, a row a token; x is padded where padding is not by zeros.
        """
        ...


def buffer(use: str, shape: Shape, like: Tensor) -> Tensor:
    """An uninitialised tensor for one product; a kept one, unless gradients are recorded through it."""
    if torch.is_grad_enabled() and like.requires_grad:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    return scratch(f"bypass {use}", shape, like.dtype, like.device)
