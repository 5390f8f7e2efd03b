"""Write files. They get their names only when they are complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import unicodedata
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from torch import Tensor

from ..errors import WriteError
from ..messages import Phrase, either
from .cache import TensorCache
from .dtypes import DTYPE_NAMES, ITEM_BITS
from .safetensors_file import encode_header, raw_bytes
from .tensor_file import SAFETENSORS, TensorFile, TensorInfo

UNFINISHED = ".part"
"""The ending of unfinished files, and of earlier files that are set aside. No program takes them for
models."""
ASIDE = f".earlier{UNFINISHED}"
"""The ending of earlier files that are set aside while new ones take their names."""
ON_WINDOWS = os.name == "nt"
DEVICE = re.compile(r"(?:con|prn|aux|nul|com[1-9]|lpt[1-9])\s*(?:\..*)?", re.IGNORECASE)
"""A name that stands for a device on Windows, whatever its ending. Data written to it are lost."""
RECIPE = "lycoris_recipe"
"""The metadata key of a file's recipe: its sources and how it was made, as JSON."""

DATA_HASH, MODELSPEC_HASH = "sshs_model_hash", "modelspec.hash_sha256"
HASHES = (DATA_HASH, MODELSPEC_HASH, "sshs_legacy_hash")
"""Metadata keys of hashes of the tensors. They become wrong when a tensor changes."""

Progress = Callable[[int, int], None]
"""A function that is called with the amount done and the total, both in layers or both in bytes.

An exception that it raises ends the work, and nothing is written.
"""


def metadata_of(
    kept: Mapping[str, str], added: Mapping[str, str | None], recipe: Mapping[str, Any], source: str
) -> dict[str, str]:
    """The metadata of a file that is made from another file.

    It has the source file's metadata `kept` without its hashes, then `added`, where None removes a key, then
    `recipe` as JSON. `source` is the key under which the new recipe keeps the source file's recipe.
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


def short_name(path: str) -> str:
    """A file's name without its folder, as recipes record it, from a Windows or POSIX path."""
    return path.replace("\\", "/").rpartition("/")[2]


def in_file_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the order of the safetensors package: wide dtypes first, then by name.

    In that order the data of each tensor are aligned to its dtype.
    """
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def data_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of a safetensors file of these tensors in this order, without the header.

    This is kohya-ss' `sshs_model_hash` (`precalculate_safetensors_hashes` in library/train_util.py of
    sd-scripts, Apache-2.0) and, with 0x in front, ModelSpec's `hash_sha256`.
    """
    return _digest(tensors.values())


def data_hash_of(file: TensorFile, cache: TensorCache) -> str:
    """The `data_hash` of a file's tensors in the order of writing, read one at a time."""
    keys = sorted(file.tensors, key=lambda key: (-ITEM_BITS[file.tensors[key].dtype], key))
    return _digest(file.read([key], cache, keep=False)[key] for key in keys)


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def header_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The header of a file of these tensors in this order, with its length in front."""
    layout: dict[str, TensorInfo] = {}
    position = 0
    for name, tensor in tensors.items():
        dtype = DTYPE_NAMES[tensor.dtype]
        end = position + tensor.numel() * ITEM_BITS[dtype] // 8
        layout[name] = TensorInfo(dtype, tuple(tensor.shape), position, end)
        position = end
    return encode_header(layout, metadata)


@contextmanager
def new_files(
    paths: Sequence[Path], size: int, *, overwrite: bool = True, make_folder: bool = False
) -> Generator[list[BinaryIO]]:
    """New files, open for writing. They get the names `paths` together if the block ends without error.

    All paths are in one folder; `make_folder` makes it where it is missing. `size` is the number of bytes to
    be written. Until the end each file has a name that ends in `.part`, and can be read under that name once
    it is flushed. At the end the files are synced to the disk and get their names; without `overwrite` they
    replace no file. After an error the new files are removed, and earlier files of these names are untouched.
    A process that is killed leaves unfinished files behind.

    A link is replaced and not followed: the file that it points to stays as it is.

    Raises WriteError where a name is taken, where there is no room, or where the system refuses.
    """
    path, folder = paths[0], paths[0].parent
    with system_errors(path, size):
        home = _home(folder, make_folder=make_folder)
        for each in paths:
            _check_path(each, home)
        check_room(path, size, home=home)
        files: list[BinaryIO] = []
        try:
            for each in paths:
                # A random word, so that two writers of one name do not collide.
                unfinished = home / f".{each.name}.{secrets.token_hex(8)}{UNFINISHED}"
                files.append(cast("BinaryIO", unfinished.open("xb")))
            yield files
            for file in files:
                file.flush()
                # Never give a name to a file that a power cut can still damage.
                os.fsync(file.fileno())
                file.close()
            unfinished_of = {each: Path(file.name) for each, file in zip(paths, files, strict=True)}
            with _folder_of(path):
                _give_names(unfinished_of, overwrite=overwrite)
        finally:
            for file in files:
                # On a full disk, closing tries to write the last bytes again, and fails again.
                with suppress(OSError):
                    file.close()
                # After a success the file has its new name.
                with suppress(OSError):
                    os.unlink(file.name)


@contextmanager
def _folder_of(path: Path) -> Generator[None]:
    """Make the folder of a file if it is missing; remove it again if the block fails."""
    folder = path.parent
    new = not folder.is_dir()
    if new:
        folder.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if new:
            # This fails if another writer has put its files there.
            with suppress(OSError):
                folder.rmdir()
        raise
    _sync(folder)
    if new:
        _sync(folder.parent)


def _give_names(unfinished_of: Mapping[Path, Path], *, overwrite: bool) -> None:
    """Give files their names. `unfinished_of` maps each new name to the file's present name.

    Readers look for the first of several files, and read the others along with it. So an earlier first file
    is set aside before anything else, and the new one gets its name last: no reader ever finds old and new
    files together. After an error the files are as they were before.
    """
    aside = {path: path.with_name(f".{path.name}.{secrets.token_hex(8)}{ASIDE}") for path in unfinished_of}
    try:
        if overwrite and len(unfinished_of) > 1:
            for path in unfinished_of:
                with suppress(FileNotFoundError):
                    os.replace(path, aside[path])
            # Otherwise a power cut could keep the later steps and lose this one.
            _sync(next(iter(unfinished_of)).parent)
        for path in reversed(list(unfinished_of)):
            if overwrite:
                os.replace(unfinished_of[path], path)
            else:
                _claim(unfinished_of[path], path)
    except BaseException as error:
        if len(unfinished_of) > 1:
            _take_back(unfinished_of, aside, error)
        raise
    for earlier in aside.values():
        with suppress(OSError):
            earlier.unlink(missing_ok=True)


def set_aside(path: Path) -> Path | None:
    """The file that had this name before a process was killed while it replaced it; None for none."""
    with suppress(OSError, ValueError):
        aside = [file for file in path.parent.iterdir() if file.name.endswith(ASIDE)]
        return next((file for file in aside if file.name.startswith(f".{path.name}.")), None)
    return None


def _take_back(unfinished_of: Mapping[Path, Path], aside: Mapping[Path, Path], error: BaseException) -> None:
    """Undo `_give_names`, however far it got."""
    try:
        for path, unfinished in unfinished_of.items():
            # A renamed file has lost its old name, unless the interruption came between link and unlink.
            if not unfinished.exists() or (path.exists() and path.samefile(unfinished)):
                path.unlink(missing_ok=True)
        for path in reversed(list(aside)):
            with suppress(FileNotFoundError):
                os.replace(aside[path], path)
    except OSError as refused:
        raise WriteError(
            "E-files-not-put-back",
            file=str(next(iter(unfinished_of))),
            error=str(error),
            refused=refused,
            unfinished=UNFINISHED,
        ) from error


def _claim(unfinished: Path, path: Path) -> None:
    """Give a file a name that no file has yet. Raises FileExistsError where one has it."""
    if sys.platform == "win32":
        # On Windows this never replaces a file.
        os.rename(unfinished, path)
        return
    try:
        # A rename would replace a file that appeared after a check; a link fails.
        os.link(unfinished, path)
    except FileExistsError:
        raise
    except OSError:
        # exFAT and some network drives have no links: take the name with an empty file, then replace it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        try:
            os.replace(unfinished, path)
        except BaseException:
            path.unlink()
            raise
        return
    unfinished.unlink()


def _sync(folder: Path) -> None:
    """Sync the names in a folder to the disk, so that they survive a power cut, where the system can."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_name(path: str | os.PathLike[str]) -> Path:
    """The path of a file or folder to write.

    Raises WriteError for a text that is not a valid name on every system, and on Windows for a device's name.
    """
    text = os.fspath(path)
    device = next((segment for segment in Path(text).parts if DEVICE.fullmatch(segment)), None)
    if ON_WINDOWS and device is not None:
        raise WriteError("E-name-reserved-by-windows", file=text, got=device)
    # Linux would write half of a surrogate pair (Cs) as a byte that is not text in any encoding. Windows
    # refuses control characters (Cc), and every system refuses NUL.
    wrong = next((mark for mark in text if unicodedata.category(mark) in ("Cc", "Cs")), None)
    if wrong is not None:
        raise WriteError("E-name-character-unusable", file=ascii(text)[1:-1], got=ascii(wrong)[1:-1])
    return Path(path)


def safetensors_path(path: str | os.PathLike[str]) -> Path:
    """The path of a safetensors file to write. Raises WriteError for a name that no reader would accept."""
    target = check_name(path)
    if target.suffix.lower() not in SAFETENSORS:
        raise WriteError(
            "E-file-not-safetensors",
            file=str(target),
            got=target.suffix or Phrase("R-no-ending"),
            expected=either(SAFETENSORS),
        )
    return target


def check_other(path: Path, source: str, what: str = "the base model") -> None:
    """Raise WriteError where `path`, the file to write, is its own `source`, or a link to it.

    `what` says what the source is, for the error.
    """
    with system_errors(path):
        same = path.exists() and os.path.exists(source) and path.samefile(source)
    if same:
        raise WriteError("E-output-replaces-input", file=str(path), what=what, got=source)


def check_files(paths: Sequence[Path], *, overwrite: bool = True, make_folder: bool = False) -> None:
    """Raise WriteError, before any work is done, where `new_files` would refuse a name or folder."""
    # `lexists`, because a broken link takes the name too.
    if not overwrite and (taken := next(filter(os.path.lexists, paths), None)):
        raise _taken(taken)
    with system_errors(paths[0]):
        home = _home(paths[0].parent, make_folder=make_folder)
        for each in paths:
            _check_path(each, home)


def _home(folder: Path, *, make_folder: bool) -> Path:
    """The folder to write to, or, if it is yet to be made, the one that will contain it."""
    return folder if folder.is_dir() or not make_folder else folder.parent


def _check_path(path: Path, home: Path) -> None:
    """Raise WriteError unless `path` can be a file in the folder `home`, or in a new folder there."""
    if not home.is_dir():
        raise WriteError("E-folder-absent", file=str(path))
    if path.is_dir():
        raise WriteError("E-name-is-a-folder", file=str(path))
    if path.exists() and not path.is_file():
        raise WriteError("E-name-is-no-file", file=str(path))


def check_room(path: Path, size: int, what: str = "the file", *, home: Path | None = None) -> None:
    """Raise WriteError where the disk has no room for `size` bytes.

    `home` is an existing folder on that disk, by default the folder of `path`; `what` names the bytes.
    """
    free = shutil.disk_usage(home or path.parent).free
    if size > free:
        raise WriteError(
            "E-disk-full-before-writing",
            file=str(path),
            what=what,
            free=f"{free / 1e6:,.2f}",
            size=f"{size / 1e6:,.2f}",
        )


@contextmanager
def system_errors(path: Path, size: int = 0) -> Generator[None]:
    """Turn an OSError into a WriteError for the file at `path`.

    `size` is the number of bytes that a new file needs; 0 where nothing is to be written.
    """
    try:
        yield
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        # EFBIG: the file system has room, but not for a file of this size.
        full = error.errno in (errno.ENOSPC, errno.EFBIG)
        raise WriteError(
            "E-disk-full" if full else "E-file-not-written" if size else "E-path-not-writable",
            file=str(path),
            # Leave out the path in the error's own text: it may be the unfinished file's.
            got=os.strerror(error.errno) if error.errno else str(error),
            size=size,
        ) from error


def _taken(path: Path) -> WriteError:
    return WriteError("E-file-exists", file=str(path))
