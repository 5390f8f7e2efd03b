"""Buffers that are used again from layer to layer: fresh memory costs more than what is done in it."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

KEPT = 16 << 20
"""Bytes up to which a buffer is kept for the next layer."""


class _Held(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.device], Tensor] = {}


_HELD = _Held()


def scratch(use: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, valid until the next call with the same `use` in this thread."""
    size = math.prod(shape) * dtype.itemsize
    held = _HELD.buffers.get((use, device))
    if held is None or held.numel() < size:
        held = torch.empty(size, dtype=torch.uint8, device=device)
        if size <= KEPT:
            _HELD.buffers[use, device] = held
    return held[:size].view(dtype).view(tuple(shape))


def forget() -> None:
    """Let go of this thread's buffers: what else has them keeps them."""
    _HELD.buffers.clear()
