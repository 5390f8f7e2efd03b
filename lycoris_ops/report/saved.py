"""Describe in words what was written to an adapter file."""

from __future__ import annotations

from pathlib import Path

from ..messages import phrase
from ..names.dialects import GENERIC_NAMES
from ..writing.save import SaveResult
from .words import paragraph


def describe_saved(result: SaveResult) -> str:
    """The report on a saved adapter."""
    name = Path(result.path)
    # Some tools give all files the same name, so show the folder's too.
    shown = f"{name.parent.name}/{name.name}" if name.stem in GENERIC_NAMES else name.name
    first = phrase(
        "R-saved", file=shown, layers=result.layers, dialect=result.dialect, megabytes=result.size / 1e6
    )
    changes = [f"  {change}" for change in (*result.changes, *result.in_comfy)]
    return paragraph([first, *changes, f"  {phrase('R-saved-read-back')}", result.path])
