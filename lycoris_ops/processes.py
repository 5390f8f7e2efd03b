"""Work in several processes, as `torchrun` starts them, without a wrapper around a model or network.

In a training each process takes every n-th batch. The gradients are added up over the processes before each
step, so that all make the same step. Each has the whole network, or its part of one that `fully_shard` has
divided. Only the first process writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .bypass.hook import shards
from .errors import LycorisError, TrainError
from .maths.tensors import is_divided, own_part

_dist: Any = dist
Value = TypeVar("Value")


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _on() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _on() else 0


@torch.no_grad()
def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors in place by their sums over all processes, in one message for each dtype and device.

    Gradients of divided parameters are sums already, see `maths.tensors.whole`.
    """
    if not _on():
        return
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if not is_divided(tensor):
            alike.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in alike.values():
        # A single one is large, such as the gradient of a weight: no copy of it.
        flat = torch.cat([tensor.reshape(-1) for tensor in group]) if group[1:] else group[0].reshape(-1)
        _dist.all_reduce(flat)
        parts = cast("Sequence[Tensor]", torch.split(flat, [tensor.numel() for tensor in group]))
        for tensor, part in zip(group, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def share(tensors: Sequence[Tensor]) -> None:
    """Replace tensors in place by those of the first process, and equal parts by those of their first one."""
    for tensor in tensors if _on() else ():
        if not is_divided(tensor):
            _dist.broadcast(tensor, src=0)
            continue
        divided: Any = tensor
        for dim, placement in enumerate(divided.placements):
            if placement.is_replicate():
                group = divided.device_mesh.get_group(dim)
                _dist.broadcast(own_part(tensor), src=_dist.get_global_rank(group, 0), group=group)


def shared(value: float, device: torch.device) -> float:
    """A number of the first process."""
    if not _on():
        return value
    tensor = torch.tensor([value], device=device)
    _dist.broadcast(tensor, src=0)
    return float(tensor)


def of_first(value: Value) -> Value:
    """The value of the first process, of any kind that can be pickled."""
    if not _on():
        return value
    values = [value]
    _dist.broadcast_object_list(values, src=0)
    return values[0]


def of_all(value: Value) -> list[Value]:
    """The values of all processes, in order, of any kind that can be pickled."""
    if not _on():
        return [value]
    values: list[Any] = [None] * count()
    _dist.all_gather_object(values, value)
    return values


def check_whole(module: nn.Module) -> None:
    """Raise LycorisError where each process computes a part of a layer, as with tensor parallelism.

    A layer beside such a module would see a part of its input or output, and the processes would each train
    with another batch. What `fully_shard` divides is whole within each pass.
    """
    for path, weight in _divided(module):
        raise LycorisError(
            "the processes compute this layer in parts, and no network can act beside it",
            weight=path,
            got=f"{', '.join(map(str, weight.placements))} of {weight.device_mesh}",
            expected="whole layers, or a model that fully_shard has sharded",
            hint="Shard the model by fully_shard in place of tensor parallelism. merge_to works on it",
        )


def check_parts(network: nn.Module) -> bool:
    """Whether processes have a network in parts. Raises TrainError unless all of them together do."""
    # Where someone has put the parts together.
    give_back(network)
    divided = {name: value for name, value in network.named_parameters() if is_divided(value)}
    for name, value in divided.items():
        mesh = cast("Any", value).device_mesh
        if mesh.size() != count():
            raise TrainError(
                "some processes do not have a part of the network",
                key=name,
                got=f"{mesh}, with {mesh.size()} of {count()} processes",
                expected="a mesh of all processes",
                hint="Shard over two dimensions, of equal copies and of parts",
            )
    return bool(divided)


def give_back(module: nn.Module) -> None:
    """Let no process keep weights whole that `fully_shard` divides, such as those of the latest pass."""
    for inner in module.modules():
        if shards(inner):
            cast("Any", inner).reshard()


def _divided(module: nn.Module, path: str = "", *, sharded: bool = False) -> Iterator[tuple[str, Any]]:
    """The divided weights, by path, that `fully_shard` does not put together before each pass."""
    sharded = sharded or shards(module)
    for name, value in module.named_parameters(recurse=False):
        if is_divided(value):
            # Over one dimension of processes, or equal copies of that over another one.
            *copies, last = cast("Any", value).placements
            whole = len(copies) < 2 and type(last).__name__ == "Shard"
            if not (sharded and whole and all(each.is_replicate() for each in copies)):
                yield f"{path}{name}", value
    for name, inner in module.named_children():
        yield from _divided(inner, f"{path}{name}.", sharded=sharded)


def _on() -> bool:
    return dist.is_available() and dist.is_initialized()
