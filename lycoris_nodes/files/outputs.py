"""Where new files are written."""

from __future__ import annotations

from pathlib import Path

from ...lycoris_ops import SAFETENSORS
from ..host.files import output_path


def adapter_path(prefix: str, dialect: str) -> Path:
    """The path for a new adapter: the prefix with the next free number. For peft it is a folder."""
    return output_path(prefix, ending_of(dialect))


def ending_of(dialect: str) -> str:
    """What the name of an adapter ends with. PEFT reads a folder with two files."""
    return "" if dialect == "peft" else SAFETENSORS[0]
