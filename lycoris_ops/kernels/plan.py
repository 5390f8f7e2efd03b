"""The plan of a patch: every layer that changes one weight, fused, applied in one pass."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..algebra import Shape, compute_dtype, flat_shape
from ..algorithms import Layer
from ..errors import LayerError
from ..forms import Form
from .group import Group, row_tiles

Fuse = Callable[[Sequence[Any], Sequence[int], int], tuple[Group, tuple[Tensor, ...]]]


def _discover() -> dict[type[Form], Fuse]:
    """A module beside this one that defines FORM and `fuse` handles that form."""
    package = __name__.rpartition(".")[0]
    folder = importlib.import_module(package).__path__
    found: dict[type[Form], Fuse] = {}
    for module_info in pkgutil.iter_modules(folder):
        if module_info.name != "plan":
            module = importlib.import_module(f"{package}.{module_info.name}")
            if hasattr(module, "FORM"):
                found[module.FORM] = module.fuse
    return found


FUSE = _discover()


@dataclass(frozen=True)
class PatchPlan:
    """W += sum over the layers of strength * delta, in one pass with one rounding.

    A plan holds for a weight's shape and a set of layers; strengths may change from one application
    to the next, in the order of the layers it was built from.
    """

    shape: Shape
    groups: tuple[Group, ...]
    tensors: tuple[Tensor, ...] = ()
    strengths: tuple[float, ...] = ()

    @classmethod
    def build(
        cls,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str,
        layers: Sequence[tuple[Layer, float]],
    ) -> PatchPlan:
        """Decide what is fused with what. `dtype` and `device` are those of the weight to come.

        Raises LayerError where a layer does not fit the shape.
        """
        target = torch.device(device)
        by_form: dict[type[Form], tuple[list[Form], list[int]]] = {}
        for slot, (layer, _) in enumerate(layers):
            layer.check_fit(shape)
            form = layer.form()
            forms, slots = by_form.setdefault(type(form), ([], []))
            forms.append(form)
            slots.append(slot)
        groups: list[Group] = []
        tensors: list[Tensor] = []
        for kind, (forms, slots) in by_form.items():
            group, own = FUSE[kind](forms, slots, len(tensors))
            groups.append(group)
            tensors += [tensor.to(target).contiguous() for tensor in own]
        strengths = tuple(float(strength) for _, strength in layers)
        return cls(tuple(shape), tuple(groups), tuple(tensors), strengths)

    @property
    def report(self) -> str:
        """What is fused and how, a line a group."""
        return "\n".join(group.summary for group in self.groups)

    @torch.no_grad()
    def apply_(self, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> Tensor:
        """Patch `weight` in place and return it, whatever its strides and floating-point dtype.

        The sum is formed in float32 (float64 for a float64 weight) and rounded once to the weight's
        dtype. `tensors` are the plan's, moved to the weight's device here where they are not there.
        """
        if tuple(weight.shape) != self.shape:
            raise LayerError(
                "the plan was made for another shape",
                got=str(list(weight.shape)),
                expected=str(list(self.shape)),
            )
        if not weight.is_floating_point():
            raise LayerError(
                "a weight of this dtype cannot be patched",
                got=str(weight.dtype),
                expected="a floating-point weight",
            )
        dtype = compute_dtype(weight.dtype)
        moved = [tensor.to(weight.device, non_blocking=weight.device.type != "cpu") for tensor in tensors]
        adds = [group.bind(moved, strengths, dtype) for group in self.groups]
        rows, columns = flat_shape(self.shape)
        if weight.dtype == dtype and weight.is_contiguous():
            flat = weight.view(rows, columns)
            for add in adds:
                add(flat, 0)
            return weight
        tiles = row_tiles(rows, columns)
        buffer = torch.empty(tiles[0][1], columns, dtype=dtype, device=weight.device)
        for first, last in tiles:
            piece = weight[first:last]
            tile = buffer[: last - first]
            shaped = tile.view(piece.shape)
            shaped.copy_(piece)
            for add in adds:
                add(tile, first)
            piece.copy_(shaped)
        return weight


def patch_(weight: Tensor, layers: Sequence[tuple[Layer, float]]) -> Tensor:
    """weight += sum of strength * delta over the (layer, strength) pairs, in place and fused.

    Returns the weight. Raises LayerError where a layer does not fit it.
    """
    plan = PatchPlan.build(weight.shape, weight.dtype, weight.device, layers)
    return plan.apply_(weight, plan.tensors, plan.strengths)
