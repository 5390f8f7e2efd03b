"""The merge methods by name."""

from __future__ import annotations

from ..discovery import discover
from ..errors import LycorisError
from . import methods
from .method import MergeMethod

METHODS: dict[str, MergeMethod] = {module.METHOD.name: module.METHOD for module in discover(methods.__name__)}


def merge_methods() -> dict[str, MergeMethod]:
    """All merge methods by name, each with its source, its options and its number of adapters."""
    return dict(METHODS)


def method_of(name: str) -> MergeMethod:
    """The merge method of this name. Raises LycorisError for an unknown one."""
    if name not in METHODS:
        raise LycorisError("E-merge-method-unknown", got=str(name), expected=", ".join(METHODS))
    return METHODS[name]
