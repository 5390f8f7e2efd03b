"""What an architecture module tells: other names of a model's layers, and what they mean there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...maths.shapes import Shape


@dataclass(frozen=True)
class Place:
    """A layer of the model by its path, or some rows of it: first and end."""

    path: str
    rows: tuple[int, int] | None = None


Places = tuple[Place, ...]
"""One place, or several whose rows, one after the other, are the output of the named layer."""

Aliases = Callable[[Mapping[str, Shape]], Mapping[str, Places]]
"""From the paths of a model's layers, with their weights' shapes, to what other names of layers mean.

A shape is () where it is not known; names that need it (slices) are left out then. The result is
empty where the layers are of another architecture.
"""
