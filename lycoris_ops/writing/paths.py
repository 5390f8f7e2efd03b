"""The paths to write an adapter to: a file, or a folder of its own with a configuration."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import WriteError
from ..files.tensor_file import PICKLES, SAFETENSORS
from ..files.writing import check_files, check_name, safetensors_path, system_errors
from ..names.dialects import DIALECTS, write_of
from ..peft import CONFIG_NAME

CARD = "README.md"
"""The name of the model card in an adapter's folder."""


def has_folder(dialect: str) -> bool:
    """Whether an adapter in this dialect is a folder that holds the weights and a configuration."""
    return write_of(dialect).configuration == "beside"


def check_output(path: str | os.PathLike[str], dialect: str, *, overwrite: bool = True) -> list[Path]:
    """The files to write for a path that a user gave: the adapter's, and those beside it in its folder.

    Raises WriteError, before any work is done, for a name that readers would not find or not accept, for a
    folder that is not there, and with `overwrite` off for a name that is taken.
    """
    files = files_of(path, dialect)
    check_files(files, overwrite=overwrite, make_folder=has_folder(dialect))
    return files


def files_of(path: str | os.PathLike[str], dialect: str) -> list[Path]:
    """The file to write for a path that a user gave, and in a folder that of its configuration, and of its
    card where there is none. With `has_folder` the path may be that folder.

    They are replaced together, or not at all: a configuration is wrong for other weights. A card is never
    replaced: it may be the user's own.

    Raises WriteError for a name that readers would not find or not accept.
    """
    if not has_folder(dialect):
        return [safetensors_path(path)]
    out = check_name(path)
    with system_errors(out):
        out = _in_folder(out, dialect)
    card = out.with_name(CARD)
    carded = write_of(dialect).card is not None and not os.path.lexists(card)
    return [out, out.with_name(CONFIG_NAME), *([card] if carded else [])]


def _in_folder(path: Path, dialect: str) -> Path:
    name = f"{DIALECTS[dialect].file}.safetensors"
    # A path without a tensor file's ending, such as `style-v1.5`, means a folder, which may not exist yet.
    if path.suffix.lower() not in SAFETENSORS + PICKLES and not path.is_file():
        path = path / name
    if path.name != name:
        raise WriteError("E-dialect-needs-folder", file=str(path), dialect=dialect, name=name, got=path.name)
    others = [file.name for file in path.parent.glob("*") if file.suffix.lower() in SAFETENSORS]
    if set(others) - {name}:
        raise WriteError(
            "E-folder-holds-other-adapters",
            file=str(path),
            config=CONFIG_NAME,
            got=", ".join(sorted(set(others) - {name})[:3]),
        )
    return path
