"""Files that appear under their names only when they are complete, and what their metadata say."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ..errors import WriteError
from .dtypes import DTYPE_NAMES, ITEM_BITS
from .safetensors_file import encode_header, raw_bytes
from .tensor_file import TensorInfo

RECIPE = "lycoris_recipe"
"""Metadata key under which a file says how it was made."""

DATA_HASH, MODELSPEC_HASH = "sshs_model_hash", "modelspec.hash_sha256"
HASHES = (DATA_HASH, MODELSPEC_HASH, "sshs_legacy_hash")
"""Metadata that are false once a tensor has changed."""

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all, in layers or in bytes.

What it raises ends the work, and nothing is written.
"""


def metadata_of(
    kept: Mapping[str, str], added: Mapping[str, str | None], recipe: Mapping[str, Any], source: str
) -> dict[str, str]:
    """A source's metadata less its hashes, with what is added (None takes away) and the recipe.

    The recipe that the source has itself is kept in ours as `source`. `format` is what transformers and
    diffusers insist on.
    """
    own = {source: kept[RECIPE]} if RECIPE in kept else {}
    table: dict[str, str | None] = {
        "format": "pt",
        **{key: value for key, value in kept.items() if key not in HASHES},
        **added,
        RECIPE: json.dumps({**recipe, **own}),
    }
    return {key: value for key, value in table.items() if value is not None}


def in_file_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Wide dtypes first, then by name, as the safetensors package has them: so each one is aligned."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def data_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a safetensors file's data, that is of all behind its header, in the order given.

    It is both kohya-ss' `sshs_model_hash` (networks' `precalculate_safetensors_hashes` in
    library/train_util.py of sd-scripts, Apache-2.0) and, after 0x, ModelSpec's `hash_sha256`.
    """
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def header_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The header of a file of these tensors, in the order given."""
    return encode_header(_layout(tensors), metadata)


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    layout: dict[str, TensorInfo] = {}
    position = 0
    for name, tensor in tensors.items():
        dtype = DTYPE_NAMES[tensor.dtype]
        end = position + tensor.numel() * ITEM_BITS[dtype] // 8
        layout[name] = TensorInfo(dtype, tuple(tensor.shape), position, end)
        position = end
    return layout


@contextmanager
def written(path: Path, size: int) -> Generator[BinaryIO]:
    """A file that is written beside `path` and takes its name only when all went well."""
    part = path.with_name(_part_name(path))
    with system_errors(path, size):
        _check_place(path, size)
        try:
            with part.open("xb") as file:
                yield file
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def staged(path: Path, size: int) -> Generator[Path]:
    """A folder beside `path`, whose files move to where `path` is when all went well.

    So what is in it can be read under its own name before anything takes effect.
    """
    folder = path.with_name(_part_name(path))
    with system_errors(path, size):
        _check_place(path, size)
        try:
            folder.mkdir()
            yield folder
            for file in sorted(folder.iterdir()):
                os.replace(file, path.parent / file.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_free(*paths: Path) -> None:
    """Raise WriteError where a file of such a name is there already."""
    for path in paths:
        with system_errors(path):
            taken = path.exists()
        if taken:
            raise WriteError(
                "there is a file of that name already",
                file=str(path),
                hint="Choose another name, or allow to replace it (overwrite, --overwrite)",
            )


def check_other(path: Path, source: str) -> None:
    """Raise WriteError where the file to write is the very file that it is made from, or a link to it."""
    with system_errors(path):
        same = path.exists() and path.samefile(source)
    if same:
        raise WriteError(
            "the file to write is the one that is merged into, which would be lost",
            file=str(path),
            got=source,
            expected="another file",
            hint="A merge cannot be taken back: choose another name",
        )


def _part_name(path: Path) -> str:
    return f".{path.name}.{secrets.token_hex(4)}.part"


def _check_place(path: Path, size: int) -> None:
    if not path.parent.is_dir():
        raise WriteError("there is no such folder", file=str(path), expected="an existing folder")
    if path.is_dir():
        raise WriteError("there is a folder of that name", file=str(path), expected="a file's name")
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise WriteError(
            "there is no room for the file",
            file=str(path),
            got=f"{free} bytes free",
            expected=f"{size} bytes",
            hint="Free some space or choose another folder",
        )


@contextmanager
def system_errors(path: Path, size: int = 0) -> Generator[None]:
    """What the system refuses inside is raised as a WriteError for a file at `path`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG)
        raise WriteError(
            "the disk is full" if full else "the file cannot be written",
            file=str(path),
            got=os.strerror(error.errno) if error.errno else str(error),
            expected=f"room for {size} bytes" if full else None,
            hint="Nothing was left behind, and an earlier file of that name is untouched",
        ) from error
