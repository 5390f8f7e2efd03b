"""Layers of single parameters in a checkpoint: routers, and experts as parts of one tensor (E, O, I)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..maths.shapes import Shape
from ..names.targets import WEIGHT
from ..peft.parameters import of_expert
from ..stack.stack import Stack


class Within(NamedTuple):
    """Where in a file a weight (O, I) is."""

    key: str
    """The tensor that holds it."""
    expert: int | None
    """Which part of the tensor it is; None for all of it."""


def parameters_in(shapes: Mapping[str, Shape], stack: Stack) -> dict[str, Within]:
    """The weights that the layers of a stack can mean as parameters, by a key for each.

    These keys are `<key>.expert3` for an expert, and `<key>.weight` for a router, whose layer is called like
    the whole key of its weight. A tensor of experts with as many rows as columns is left out: nothing in it
    tells whether it is (E, O, I) or (E, I, O).
    """
    names = [name for entry in stack for name in entry.adapter.names]
    numbers = sorted({name.expert for name in names if name.expert is not None})
    # Some dialects have no dots in names.
    routers = tuple(f"_{path}" for name in names if (path := _joined(name.path)).endswith(_joined(WEIGHT)))
    found: dict[str, Within] = {}
    for key, shape in shapes.items():
        if len(shape) == 3 and shape[1] != shape[2]:
            found |= {of_expert(key, number): Within(key, number) for number in numbers if number < shape[0]}
        elif len(shape) == 2 and f"_{_joined(key)}".endswith(routers):
            found[f"{key}{WEIGHT}"] = Within(key, None)
    return found


def _joined(path: str) -> str:
    return path.replace(".", "_")
