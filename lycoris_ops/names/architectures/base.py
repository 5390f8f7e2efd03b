"""The form in which architecture modules give other names of a model's layers, and what the names mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...maths.shapes import Shape


@dataclass(frozen=True)
class Place:
    """A layer of the model by its path, or some of its rows."""

    path: str
    rows: tuple[int, int] | None = None
    """First row and end; None for all rows."""


Places = tuple[Place, ...]
"""What a name means: one place, or several whose rows, one below the other, are those of the named layer."""

Aliases = Callable[[Mapping[str, Shape]], Mapping[str, Places]]
"""A function from the paths of a model's layers, with their weights' shapes, to other names and their places.

A shape is () where it is not known; names that depend on it (parts of a layer's rows) are left out then. The
result is empty for a model of another architecture.
"""
