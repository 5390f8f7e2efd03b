"""Layers of experts in a checkpoint, each a part of one tensor (E, O, I)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..maths.shapes import Shape
from ..peft.parameters import of_expert
from ..stack.stack import Stack


class Within(NamedTuple):
    """Where in a file a weight (O, I) is."""

    key: str
    """The tensor that holds it."""
    expert: int
    """Which part of the tensor it is."""


def experts_in(shapes: Mapping[str, Shape], stack: Stack) -> dict[str, Within]:
    """The experts that a stack's layers may name, each with a key of its own: `<key>.expert3`.

    A tensor of experts with as many rows as columns is left out: nothing in it tells whether it is (E, O, I)
    or (E, I, O).
    """
    names = [name for entry in stack for name in entry.adapter.names]
    numbers = sorted({name.expert for name in names if name.expert is not None})
    return {
        of_expert(key, number): Within(key, number)
        for key, shape in shapes.items()
        if len(shape) == 3 and shape[1] != shape[2]
        for number in numbers
        if number < shape[0]
    }
