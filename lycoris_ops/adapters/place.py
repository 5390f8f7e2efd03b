"""Where an adapter is written: to a file, or for PEFT to a folder of its own."""

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
    """The file to write for a path that a user gave; for peft that may be a folder.

    Raises WriteError for a name that readers would not find or not accept.
    """
    if dialect == "peft":
        with system_errors(path):
            return _peft_place(path)
    if path.suffix.lower() not in SAFETENSORS:
        raise WriteError(
            "adapters can only be written as safetensors files",
            file=str(path),
            got=path.suffix or "no ending",
            expected=either(SAFETENSORS),
        )
    return path


def _peft_place(path: Path) -> Path:
    # A folder that does not exist yet is known by a name without an ending.
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
    """A context in which the folder of a PEFT adapter exists. Other dialects need none, and nothing is done.

    The folder is made where it is missing, and removed again after an error.
    """
    # Only this one folder. Where its parent is missing too, writing fails as it does in every dialect.
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
