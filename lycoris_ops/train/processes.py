"""Training in several processes, as `torchrun` starts them, without a wrapper around the network.

Each process has the whole network and takes every n-th batch. The gradients are added up over the processes
before each step, so that all make the same step. Only the first process writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

_dist: Any = dist


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _on() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _on() else 0


@torch.no_grad()
def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors in place by their sums over all processes, in one message for each dtype and device."""
    if not _on():
        return
    for group in _alike(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        _dist.all_reduce(flat)
        _fill(group, flat)


@torch.no_grad()
def share(tensors: Sequence[Tensor]) -> None:
    """Replace tensors in place by those of the first process."""
    if not _on():
        return
    for group in _alike(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        _dist.broadcast(flat, src=0)
        _fill(group, flat)


def shared(value: float, device: torch.device) -> float:
    """A number of the first process."""
    if not _on():
        return value
    tensor = torch.tensor([value], device=device)
    _dist.broadcast(tensor, src=0)
    return float(tensor)


def _on() -> bool:
    return dist.is_available() and dist.is_initialized()


def _alike(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())


def _fill(tensors: Sequence[Tensor], flat: Tensor) -> None:
    parts = cast("Sequence[Tensor]", torch.split(flat, [tensor.numel() for tensor in tensors]))
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
