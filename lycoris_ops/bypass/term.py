"""What the terms of a bypassed layer have in common, whatever their form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..changes.forms import Kronecker
from ..maths.tensors import Shape
from ..patch.scratch import scratch

Strengths = Sequence[float]


@dataclass(frozen=True)
class Item:
    """One form of one layer: added at `strengths[slot]`."""

    form: Any
    slot: int


@dataclass(frozen=True)
class Scaled:
    """diag(rows) @ form @ diag(columns): a Kronecker product, which cannot take them into its factors.

    `columns` has a value for each input channel.
    """

    form: Kronecker
    rows: Tensor | None = None
    columns: Tensor | None = None

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        matrix = self.form.dense(dtype, device)
        if self.rows is not None:
            matrix = matrix * self.rows.to(device, dtype)[:, None]
        if self.columns is not None:
            factor = self.columns.to(device, dtype)
            matrix = matrix * factor.repeat_interleave(matrix.shape[1] // len(factor))
        return matrix


class Term(Protocol):
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
