"""Tensors that are divided among processes: DTensors of torch, as `fully_shard` and `parallelize_module` make
them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

_dist: Any = dist


def is_divided(value: Tensor | None) -> bool:
    """Whether a tensor is divided among processes: a DTensor of torch."""
    return hasattr(type(value), "full_tensor")


def whole(value: Tensor) -> Tensor:
    """The whole values of a divided tensor; any other tensor itself. All processes of a divided tensor must
    call this.

    A gradient of the whole values is added up over the processes, and each gets its part of the sum.
    """
    if not is_divided(value):
        return value
    divided: Any = value
    if not (value.requires_grad and torch.is_grad_enabled()):
        return divided.full_tensor()
    # Some builds of torch lack this module.
    from torch.distributed.tensor import Partial

    return divided.full_tensor(grad_placements=[Partial()] * divided.device_mesh.ndim)


def part_of(values: Tensor, like: Tensor) -> Tensor:
    """Whole values, divided among the processes as `like` is; the values themselves where `like` is whole."""
    if not is_divided(like):
        return values
    kind: Any = type(like)
    divided: Any = like.detach()
    values = values.to(divided.device, divided.dtype)
    again = kind.from_local(values, divided.device_mesh, run_check=False)
    return again.redistribute(placements=divided.placements)


def own_part(value: Tensor) -> Tensor:
    """This process's part of a divided tensor, without a copy; any other tensor itself."""
    return cast("Any", value.detach()).to_local() if is_divided(value) else value


def divided_as(own: Tensor, like: Tensor | None) -> Tensor:
    """This process's part as a tensor that is divided as `like` is; the part itself where `like` is whole.

    Its gradient is divided in the same way. Where a process has the tensor whole, it gets the whole gradient.
    """
    if not is_divided(like):
        return own
    kind: Any = type(like)
    divided: Any = like
    return kind.from_local(
        own,
        divided.device_mesh,
        divided.placements,
        run_check=False,
        shape=divided.shape,
        stride=divided.stride(),
    )


def put(target: Tensor, values: Tensor) -> None:
    """Copy whole values in place into a tensor, which may be divided among the processes."""
    own_part(target).copy_(own_part(part_of(values, target)))


@contextmanager
def changed_in_place(value: Tensor) -> Generator[Tensor]:
    """The whole values of a plain or divided tensor, to be changed in place; the tensor then gets them."""
    if not is_divided(value):
        yield value
        return
    values = whole(value.detach())
    yield values
    put(value, values)


def add_up_parts(value: Tensor, like: Tensor) -> None:
    """Replace in place a value of each process's part of a divided tensor by the sum over all parts."""
    divided: Any = like
    for dim, placement in enumerate(divided.placements):
        if placement.is_shard():
            _dist.all_reduce(value, group=divided.device_mesh.get_group(dim))


def share_parts(tensor: Tensor) -> None:
    """Copy the parts of a divided tensor in place, from the first of the processes that hold the same one."""
    divided: Any = tensor
    for dim, placement in enumerate(divided.placements):
        if placement.is_replicate():
            group = divided.device_mesh.get_group(dim)
            _dist.broadcast(own_part(tensor), src=_dist.get_global_rank(group, 0), group=group)
