"""Operations on many tensors at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..maths.divided import add_up_parts, is_divided, own_part, whole

# Any, because torch has no type hints for its functions on lists of tensors.
_torch: Any = torch


def copies(tensors: Sequence[Tensor], device: str | None = None) -> list[Tensor]:
    """Copies of tensors, without their graphs, on a device or where the tensors are."""
    return [tensor.detach().to(device or tensor.device, copy=True) for tensor in tensors]


@torch.no_grad()
def copy_into(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy values into tensors in place. Sharded tensors have to be sharded alike."""
    _torch._foreach_copy_(*_parts(targets, sources))


@torch.no_grad()
def move_towards(targets: Sequence[Tensor], goals: Sequence[Tensor], share: float) -> None:
    """Move tensors towards others in place, by a share of the way."""
    _torch._foreach_lerp_(*_parts(targets, goals), share)


@torch.no_grad()
def scale(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply tensors in place."""
    _torch._foreach_mul_(*_parts(tensors), factor)


def norm_of(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """The norm of all tensors together, on the device and in the dtype of `like`.

    Sharded tensors count with all their parts, so all processes must call this.
    """
    if not tensors:
        return torch.zeros_like(like)
    plain = [tensor for tensor in tensors if not is_divided(tensor)]
    norms = [_norm(_parts(plain)[0], like)] if plain else []
    alike: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        if is_divided(tensor):
            divided = cast("Any", tensor)
            alike.setdefault((divided.device_mesh, divided.placements), []).append(tensor)
    for group in alike.values():
        squared = _norm(_parts(group)[0], like).square()
        add_up_parts(squared, group[0])
        norms.append(squared.sqrt())
    return norms[0] if len(norms) == 1 else cast("Tensor", _torch.stack(norms).norm())


def gathered(value: Any) -> Any:
    """A nested value, such as an optimiser's state, with all tensors whole. All processes must call this."""
    return mapped(value, lambda tensor: whole(tensor.detach()) if is_divided(tensor) else tensor)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nested value with `change` applied to its tensors, in lists, tuples and mappings.

    Mappings become dicts.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        table = cast("Mapping[Any, Any]", value)
        return {name: mapped(item, change) for name, item in table.items()}
    if isinstance(value, (list, tuple)):
        items = [mapped(item, change) for item in cast("Sequence[Any]", value)]
        # A named tuple takes its values one by one.
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # pyright: ignore
    return value


def _norm(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    norms: list[Tensor] = _torch._foreach_norm(list(tensors))
    return cast("Tensor", _torch.stack([norm.to(like) for norm in norms]).norm())


def _parts(*lists: Sequence[Tensor]) -> list[list[Tensor]]:
    """The same lists, with this process's parts in place of sharded tensors."""
    return [[own_part(tensor) for tensor in tensors] for tensors in lists]
