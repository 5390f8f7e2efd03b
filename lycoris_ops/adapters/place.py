"""Where an adapter is written: a file, or for PEFT a folder of its own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..errors import WriteError, either
from ..files.tensor_file import SAFETENSORS
from ..files.writing import system_errors
from ..names.written import Written
from .peft import CONFIG_NAME

PEFT_FILE = "adapter_model.safetensors"
"""The only name under which PEFT looks for an adapter in its folder."""


def place_of(path: Path, dialect: Written) -> Path:
    """The file to write. Raises WriteError for a name that readers would not take."""
    if dialect == "peft":
        with system_errors(path):
            return _peft_place(path)
    if path.suffix.lower() not in SAFETENSORS:
        raise WriteError(
            "adapters are written as safetensors alone",
            file=str(path),
            got=path.suffix or "no ending",
            expected=either(SAFETENSORS),
        )
    return path


def _peft_place(path: Path) -> Path:
    if not path.suffix and not path.is_file():
        path = path / PEFT_FILE
    if path.name != PEFT_FILE:
        raise WriteError(
            "PEFT finds an adapter only under one name, in a folder of its own",
            file=str(path),
            got=path.name,
            expected=f"a folder, or {PEFT_FILE} in one",
        )
    others = [file.name for file in path.parent.glob("*") if file.suffix.lower() in SAFETENSORS]
    if set(others) - {PEFT_FILE}:
        raise WriteError(
            f"the folder holds other adapters, and {CONFIG_NAME} would be for all of them",
            file=str(path),
            got=", ".join(sorted(set(others) - {PEFT_FILE})[:3]),
            expected="a folder of its own",
        )
    return path


@contextmanager
def folder_of(path: Path, dialect: Written) -> Generator[None]:
    """PEFT's file is a folder, which is made for it, and taken away if nothing came of it."""
    new = dialect == "peft" and not path.parent.exists() and path.parent.parent.is_dir()
    if new:
        with system_errors(path):
            path.parent.mkdir()
    try:
        yield
    except BaseException:
        if new:
            path.parent.rmdir()
        raise
