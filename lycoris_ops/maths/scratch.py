"""Buffers that are reused from layer to layer: getting fresh memory costs more than computing in it."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

AWAY = 1 << 26
"""How many values an accelerator works on at once. It has no cache like a CPU's, and each part of a weight
costs kernel launches: the largest weights of a 12B model, 3072 x 12288, are one part."""
IN_PASS = 1 << 24
"""The same for changes that are formed in a model's pass: parts of several layers' changes are in memory at
once, in float32, besides the model's own values."""
KEPT = 16 << 20
"""Largest buffer in bytes that is kept for the next layer."""


# By thread: a buffer that is handed out again must not be in use by another thread.
class _Held(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.device], Tensor] = {}


_HELD = _Held()


def scratch(use: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, valid until this thread calls again with the same `use` and device."""
    size = math.prod(shape) * dtype.itemsize
    held = _HELD.buffers.get((use, device))
    if held is None or held.numel() < size:
        # As bytes: one buffer serves every dtype.
        held = torch.empty(size, dtype=torch.uint8, device=device)
        if size <= KEPT:
            _HELD.buffers[use, device] = held
    return held[:size].view(dtype).view(tuple(shape))


def tile(device: torch.device, own: int, away: int = AWAY) -> int:
    """How many values to work on at once: on a CPU `own`, which stay in its cache, elsewhere `away`."""
    return own if device.type == "cpu" else max(own, away)


def forget() -> None:
    """Drop this thread's buffers. The memory of one that is still in use elsewhere stays valid there."""
    _HELD.buffers.clear()
