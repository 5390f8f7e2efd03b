"""What was written to a file, in words."""

from __future__ import annotations

from pathlib import Path

from ..adapters.save import SaveResult
from ..bake.checkpoint import MergeResult
from .applied import describe


def describe_saved(result: SaveResult) -> str:
    """The report of an adapter that was written."""
    name = Path(result.path)
    shown = f"{name.parent.name}/{name.name}" if result.dialect == "peft" else name.name
    lines = [f"{shown}: {result.layers} layers in the dialect {result.dialect}, {result.size / 1e6:.2f} MB"]
    lines += [f"  {change}" for change in result.changes]
    return "\n".join([*lines, "  read back: every layer is what was to be written", result.path])


def describe_merged(result: MergeResult) -> str:
    """The report of a model that a stack was merged into."""
    return (
        f"{describe(result.resolution)}\n\n"
        f"{Path(result.path).name}: {result.merged} weights merged, {result.copied} tensors kept, "
        f"{result.size / 1e6:.1f} MB\n{result.path}"
    )
