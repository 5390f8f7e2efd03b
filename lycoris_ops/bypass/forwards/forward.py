"""What the forward passes of all forms have in common."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
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


@contextmanager
def outliving() -> Generator[None]:
    """What is made inside is no inference tensor: it may be used after this pass, by one with gradients.

    Leaving inference mode alone would turn gradients on as well.
    """
    recording = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(recording):
        yield


def recorded(*tensors: Tensor) -> bool:
    """Whether gradients are recorded through any of these: then nothing may be written over."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def buffer(use: str, shape: Shape, like: Tensor) -> Tensor:
    """An uninitialised tensor for one product; one that is kept, unless x is recorded, which keeps it too."""
    if recorded(like):
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    return scratch(f"bypass {use}", shape, like.dtype, like.device)
