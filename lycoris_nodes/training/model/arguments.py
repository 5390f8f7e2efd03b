"""Take the tensors out of a block's arguments, and put others in their places."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn

_HOLE = object()
"""Marks the place of a tensor that was taken out."""


def emptied(value: Any, tensors: list[Tensor], family: str) -> Any:
    """A value without the tensors in it, which are appended to a list.

    It looks into tuples, lists, dicts, dataclasses, and objects of the package `family`, which defines the
    block. Such an object may be a cache that its blocks share. All of them are copied, so that changes reach
    neither the caller nor a second run.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return _HOLE
    return _changed(value, lambda inner: emptied(inner, tensors, family), family)


def filled(value: Any, tensors: Iterator[Tensor], family: str) -> Any:
    """A copy of an emptied value, with these tensors in the holes."""
    if value is _HOLE:
        return next(tensors)
    return _changed(value, lambda inner: filled(inner, tensors, family), family)


def package_of(kind: type) -> str:
    """The package of a class."""
    return kind.__module__.rpartition(".")[0]


def _changed(value: Any, change: Callable[[Any], Any], family: str) -> Any:
    """A copy of a container with its parts changed; a value that cannot hold tensors, unchanged."""
    kind: Any = type(value)
    if kind in (tuple, list):
        return kind(change(inner) for inner in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*(change(inner) for inner in value))
    if isinstance(value, dict) and kind is dict:
        return {name: change(inner) for name, inner in value.items()}
    if isinstance(value, nn.Module | type) or not (is_dataclass(value) or package_of(kind) == family):
        return value
    other = copy.copy(value)
    for name in _parts(value):
        object.__setattr__(other, name, change(getattr(value, name)))
    return other


def _parts(value: Any) -> list[str]:
    """The names of an object's attributes."""
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return [name for name in (*slots, *getattr(value, "__dict__", ())) if hasattr(value, name)]
