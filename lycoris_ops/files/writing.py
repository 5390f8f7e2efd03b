"""Writing files: they appear under their names only when they are complete, with the right metadata."""

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
"""The metadata key of a file's recipe: what the file was made from, and how, as JSON."""

DATA_HASH, MODELSPEC_HASH = "sshs_model_hash", "modelspec.hash_sha256"
HASHES = (DATA_HASH, MODELSPEC_HASH, "sshs_legacy_hash")
"""Metadata keys of hashes over the tensors, which are false once a tensor has changed."""

Progress = Callable[[int, int], None]
"""Called with the amount done and the total, both in layers or both in bytes.

An exception that it raises ends the work, and nothing is written.
"""


def metadata_of(
    kept: Mapping[str, str], added: Mapping[str, str | None], recipe: Mapping[str, Any], source: str
) -> dict[str, str]:
    """The metadata of a file that is made from another.

    They are the source file's metadata `kept` without its hashes, then `added`, where a value of None takes a
    key away, then `recipe` as JSON. A recipe that the source file has itself is kept inside the new one under
    the key `source`.
    """
    own = {source: kept[RECIPE]} if RECIPE in kept else {}
    table: dict[str, str | None] = {
        # transformers and diffusers refuse a file without it.
        "format": "pt",
        **{key: value for key, value in kept.items() if key not in HASHES},
        **added,
        RECIPE: json.dumps({**recipe, **own}),
    }
    return {key: value for key, value in table.items() if value is not None}


def in_file_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the order of the safetensors package: wide dtypes first, then by name.

    In that order the data of each tensor are aligned to its dtype.
    """
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def data_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of the data of a safetensors file of these tensors in the order given.

    The data are all bytes after the header. The hash is both kohya-ss' `sshs_model_hash` (networks'
    `precalculate_safetensors_hashes` in library/train_util.py of sd-scripts, Apache-2.0) and, with 0x in
    front, ModelSpec's `hash_sha256`.
    """
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def header_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The header, with its length in front, of a file of these tensors in the order given."""
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
    """A new file beside `path`, open for writing, which is renamed to `path` if the block ends without error.

    After an error it is removed, and an earlier file at `path` is untouched. `size` is the number of bytes to
    be written. Raises WriteError where there is no room for them, or where the system refuses.
    """
    # Beside it, because a file can only be renamed in one step within a file system.
    part = path.with_name(_part_name(path))
    with system_errors(path, size):
        _check_place(path, size)
        try:
            with part.open("xb") as file:
                yield file
            os.replace(part, path)
        finally:
            # After a success the file has its new name, and nothing is missing here.
            part.unlink(missing_ok=True)


@contextmanager
def staged(path: Path, size: int) -> Generator[Path]:
    """A new folder beside `path`, whose files move into the folder of `path` if the block ends without error.

    Its files already have their final names, so readers can be tried on them before anything takes effect.
    After an error the folder is removed. `size` is the number of bytes to be written. Raises WriteError where
    there is no room for them, or where the system refuses.
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
    """Raise WriteError where one of these files exists already."""
    for path in paths:
        with system_errors(path):
            taken = path.exists()
        if taken:
            raise WriteError(
                "there is a file of that name already",
                file=str(path),
                hint="Choose another name, or allow it to be replaced (overwrite, --overwrite)",
            )


def check_other(path: Path, source: str) -> None:
    """Raise WriteError where `path`, the file to write, is the file `source` that it is made from.

    A link to that file counts as the file.
    """
    with system_errors(path):
        same = path.exists() and path.samefile(source)
    if same:
        raise WriteError(
            "the file to write is the one that is merged into, which would be lost",
            file=str(path),
            got=source,
            expected="another file",
            hint="A merge cannot be undone: choose another name",
        )


def _part_name(path: Path) -> str:
    # A random part, so that two runs that write the same file do not meet.
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
    """A context in which an OSError becomes a WriteError for the file at `path`.

    `size` is the number of bytes that the file needs, for the message of a full disk.
    """
    try:
        yield
    except OSError as error:
        # EFBIG: the file system has room, but not for a file of this size.
        full = error.errno in (errno.ENOSPC, errno.EFBIG)
        raise WriteError(
            "the disk is full" if full else "the file cannot be written",
            file=str(path),
            # Without the path that the error's own text has: it may be that of the unfinished file.
            got=os.strerror(error.errno) if error.errno else str(error),
            expected=f"room for {size} bytes" if full else None,
            hint="Nothing was left behind, and an earlier file of that name is untouched",
        ) from error
