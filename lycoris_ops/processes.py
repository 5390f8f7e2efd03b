"""Work in several processes, as `torchrun` starts them, without a wrapper around a model or network.

In training, each of n copies of the model takes every n-th batch. Before each step the gradients are added up
over the processes, so that all processes make the same step. Each process has the whole network, or its own
shard if `fully_shard` has divided the network. Only the first process writes files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .bypass.hook import shards
from .errors import LycorisError, TrainError
from .maths.divided import is_divided, share_parts

_dist: Any = dist
Value = TypeVar("Value")

LARGE = 1 << 18
"""A tensor of this many values or more is sent by itself, without a copy."""


def count() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if _on() else 1


def rank() -> int:
    """The index of this process, from 0."""
    return dist.get_rank() if _on() else 0


@torch.no_grad()
def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors in place by their sums over all processes.

    Small tensors of one dtype and device are sent in one message. Gradients of divided parameters are sums
    already, see `maths.divided.whole`.
    """
    if not _on():
        return
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if not is_divided(tensor):
            if tensor.numel() >= LARGE and tensor.is_contiguous():
                _dist.all_reduce(tensor)
            else:
                alike.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in alike.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        _dist.all_reduce(flat)
        chunks = cast("Sequence[Tensor]", torch.split(flat, [tensor.numel() for tensor in group]))
        for tensor, chunk in zip(group, chunks, strict=True):
            tensor.copy_(chunk.view_as(tensor))


@torch.no_grad()
def share(tensors: Sequence[Tensor]) -> None:
    """Replace tensors in place by the tensors of the first process.

    A divided tensor is copied only among processes that hold the same part, from the first of these
    processes.
    """
    for tensor in tensors if _on() else ():
        if is_divided(tensor):
            share_parts(tensor)
        else:
            _dist.broadcast(tensor, src=0)


def of_first(value: Value) -> Value:
    """The first process's value, of any type that can be pickled."""
    if not _on():
        return value
    values = [value]
    _dist.broadcast_object_list(values, src=0)
    return values[0]


def of_all(value: Value) -> list[Value]:
    """The values of all processes, in order, of any type that can be pickled."""
    if not _on():
        return [value]
    values: list[Any] = [None] * count()
    _dist.all_gather_object(values, value)
    return values


@dataclass(frozen=True)
class Copies:
    """The copies of a model. Different copies learn from different batches.

    A copy is computed by one process, or by several processes with tensor parallelism on the same batches.
    """

    count: int
    index: int
    """The index of the copy that this process computes, from 0."""
    size: int
    """The number of processes that compute one copy."""
    sharded: bool = False
    """Whether the network is sharded. If so, all processes gather it for saving, and the first one writes
    it."""

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """`add_up` for tensors that all processes of a copy have. Each copy counts once."""
        add_up(tensors)
        if self.size > 1:
            cast("Any", torch)._foreach_div_(
                [tensor for tensor in tensors if not is_divided(tensor)], self.size
            )

    def summed_gradients(self, parameters: Sequence[Tensor], *beside: Tensor) -> list[Tensor]:
        """The gradients of parameters. They and the tensors `beside` are replaced by their sums over the
        copies.

        With several processes a missing gradient counts as zeros.
        """
        for one in parameters if count() > 1 else ():
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad
        gradients = [one.grad for one in parameters if one.grad is not None]
        self.add_up([*beside, *gradients])
        return gradients


def copies_of(module: nn.Module, network: nn.Module, mesh: Any = None) -> Copies:
    """The copies of a model with a network. All processes must call this.

    Processes that hold parts of one weight compute one copy together. `mesh` is a DeviceMesh over copies, for
    a model whose weights do not show the copies. Processes at the same position of `mesh` compute one copy.

    Raises TrainError unless all copies have equally many processes and contain all parts of their weights.
    Raises it also where the network is sharded over only some of the processes, or where several compute one
    copy.
    """
    found = _copies(module, mesh)
    return replace(found, sharded=_is_sharded(network, found))


def _copies(module: nn.Module, mesh: Any) -> Copies:
    parts = in_parts(module)
    if not parts and mesh is None:
        return Copies(count(), rank(), 1)
    together = max(map(_together, parts.values()), key=len, default=(rank(),))
    if mesh is None:
        firsts = sorted(set(of_all(together[0])))
        found = Copies(len(firsts), firsts.index(together[0]), count() // len(firsts))
    else:
        own = mesh.get_coordinate() is not None
        index = mesh.mesh.flatten().tolist().index(rank()) if own else -1
        found = Copies(mesh.size(), index, count() // mesh.size())
    indices = of_all(found.index)
    even = sorted(indices) == [index for index in range(found.count) for _ in range(found.size)]
    if not even or any(indices[one] != found.index for one in together):
        raise TrainError("E-processes-incomplete-copies", key="mesh", indices=indices, together=together)
    return found


def in_parts(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a model, by path, that stay divided within a pass, as in tensor parallelism.

    Weights divided by `fully_shard` alone are whole within each pass.
    """
    return dict(_in_parts(module))


def check_whole(module: nn.Module) -> None:
    """Raise LycorisError where each process computes with a shard of a weight, as in tensor parallelism."""
    for path, weight in in_parts(module).items():
        raise LycorisError("E-processes-divide-layer", weight=path, got=divided_by(weight))


def divided_by(weight: Tensor) -> str:
    """How a weight is divided among processes, in words."""
    divided: Any = weight
    return f"{', '.join(map(str, divided.placements))} of {divided.device_mesh}"


def _is_sharded(network: nn.Module, copies: Copies) -> bool:
    # Its weights may be gathered now.
    give_back(network)
    divided = {name: value for name, value in network.named_parameters() if is_divided(value)}
    for name, value in divided.items():
        mesh = cast("Any", value).device_mesh
        if copies.size > 1:
            raise TrainError("E-processes-share-copies", key=name, mesh=mesh, size=copies.size)
        if mesh.size() != count():
            raise TrainError(
                "E-processes-without-part", key=name, mesh=mesh, count=mesh.size(), processes=count()
            )
    return bool(divided)


def give_back(module: nn.Module) -> None:
    """Free the whole weights that `fully_shard` has gathered, for example in the latest pass."""
    for inner in module.modules():
        if shards(inner):
            cast("Any", inner).reshard()


def _in_parts(module: nn.Module, path: str = "", *, sharded: bool = False) -> Iterator[tuple[str, Tensor]]:
    sharded = sharded or shards(module)
    for name, value in module.named_parameters(recurse=False):
        if is_divided(value) and _within_passes(value, sharded=sharded):
            yield f"{path}{name}", value
    for name, inner in module.named_children():
        yield from _in_parts(inner, f"{path}{name}.", sharded=sharded)


def _within_passes(weight: Any, *, sharded: bool) -> bool:
    """Whether a weight stays divided within passes, so not by `fully_shard` alone.

    `fully_shard` divides over the first dimension of the mesh, or over the second with copies over the
    first.
    """
    first, *rest = weight.placements
    if sharded and rest and first.is_replicate():
        first, *rest = rest
    return bool(rest) or not (sharded and "Shard" in type(first).__name__)


def _together(weight: Tensor) -> tuple[int, ...]:
    """The processes that hold the shards of a weight within passes, sorted."""
    mesh = cast("Any", weight).device_mesh
    return tuple(sorted(dist.get_process_group_ranks(mesh.get_group(mesh.ndim - 1))))


def _on() -> bool:
    return dist.is_available() and dist.is_initialized()
