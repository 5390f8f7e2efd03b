"""What was written to an adapter file, in words."""

from __future__ import annotations

from pathlib import Path

from ..errors import number_of
from ..writing.place import has_folder
from ..writing.save import SaveResult
from .words import paragraph


def describe_saved(result: SaveResult) -> str:
    """The report of an adapter that was written."""
    name = Path(result.path)
    # All of PEFT's files have one name: the folder's tells more.
    shown = f"{name.parent.name}/{name.name}" if has_folder(result.dialect) else name.name
    layers = number_of(result.layers, "layer")
    lines = [f"{shown}: {layers} in the dialect {result.dialect}, {result.size / 1e6:.2f} MB"]
    lines += [f"  {change}" for change in (*result.changes, *result.in_comfy)]
    return paragraph([*lines, "  read back: every layer is in the file as it should be", result.path])
