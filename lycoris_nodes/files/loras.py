"""The adapter files in the host's loras folders, which of them a name means, and where new ones go.

A name is relative to a loras folder. Other packs and other systems write it with the other separator, as a
full path, or without its folder or ending.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from ...lycoris_ops import PICKLES, SAFETENSORS, LycorisError, has_folder
from ..host.files import file_names, file_path, folders_of, is_file, output_path

FOLDER = "loras"
ENDINGS = SAFETENSORS + PICKLES


def lora_names() -> list[str]:
    """Every adapter file, by its name relative to a loras folder."""
    return file_names(FOLDER, ENDINGS)


class ListedFile(NamedTuple):
    file: str
    size: int
    """Bytes."""
    changed: float
    """Seconds since 1970."""


def lora_files() -> list[ListedFile]:
    """Every adapter file with its size and the time of its last change.

    Both are 0 if the system does not know them, as for a broken link. The page strikes such a file out.
    """
    folders = folders_of(FOLDER)
    return [ListedFile(name, *_size_and_change(folders, name)) for name in lora_names()]


def _size_and_change(folders: Sequence[str], name: str) -> tuple[int, float]:
    # The host's own search takes five times as long, and there may be thousands of files.
    for folder in folders:
        try:
            known = os.stat(os.path.join(folder, name))
        except OSError:
            continue
        return known.st_size, known.st_mtime
    return 0, 0.0


def lora_path(name: str) -> str:
    """The full path of the file that a name means.

    Raises LycorisError where there is none, and where a name without its folder or ending fits several.
    """
    return file_path(FOLDER, name if is_file(FOLDER, name) else _meant(name) or name)


def lora_name(name: str) -> str:
    """The file that a name means, as it is in `lora_names`. Raises LycorisError as `lora_path` does."""
    file = _meant(name)
    if file is None:
        # For a missing file, `file_path` raises an error that says where it was sought.
        raise LycorisError("E-not-an-adapter-file", file=file_path(FOLDER, name), expected=", ".join(ENDINGS))
    return file


def is_lora(name: str) -> bool:
    """Whether a name means at least one file."""
    try:
        return _meant(name) is not None
    except LycorisError:
        return True


def relative_name(path: str) -> str | None:
    """The name of a file that is given by its full path; None where it is in no loras folder."""
    for folder in folders_of(FOLDER):
        # The path as written comes first: links within a folder may lead out of it.
        for path_tried, home in ((path, folder), (os.path.realpath(path), os.path.realpath(folder))):
            if Path(path_tried).is_relative_to(home):
                return os.path.relpath(path_tried, home)
    return None


def adapter_path(prefix: str, dialect: str) -> Path:
    """The path for a new adapter: the prefix with the next free number. For peft and mlx it is a folder."""
    return output_path(prefix, ending_of(dialect))


def ending_of(dialect: str) -> str:
    """The ending of an adapter's name. It is "" for tools that read a folder with two files."""
    return "" if has_folder(dialect) else SAFETENSORS[0]


class _Listed(NamedTuple):
    """The names of all adapter files, by the ways to write them."""

    whole: Mapping[str, str]
    """By the name with its folder and ending."""
    stems: Mapping[str, Sequence[str]]
    """By the name without its ending."""
    last: Mapping[str, Sequence[str]]
    """By the name without its folder, with and without its ending."""


_once: ContextVar[_Listed | None] = ContextVar("once", default=None)


@contextmanager
def listed_once() -> Generator[None]:
    """A context, or a decorator, in which the files are listed once for all names."""
    token = _once.set(_once.get() or _listed())
    try:
        yield
    finally:
        _once.reset(token)


def _listed() -> _Listed:
    names = {_plain(name): name for name in lora_names()}
    stems = _grouped((_stem(plain), name) for plain, name in names.items())
    ends = ((plain.rpartition("/")[2], name) for plain, name in names.items())
    return _Listed(names, stems, _grouped((way, name) for end, name in ends for way in {end, _stem(end)}))


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for way, name in pairs:
        groups.setdefault(way, []).append(name)
    return groups


def _meant(name: str) -> str | None:
    known = _once.get() or _listed()
    wanted = _plain((relative_name(name) if os.path.isabs(name) else None) or name)
    if wanted in known.whole:
        return known.whole[wanted]
    fitting = known.stems.get(wanted, ())
    # A name with a folder does not mean a file in another folder.
    if not fitting and "/" not in wanted:
        fitting = known.last.get(wanted, ())
    if len(fitting) > 1:
        raise LycorisError("E-file-name-ambiguous", file=name, got=", ".join(fitting))
    return fitting[0] if fitting else None


def _plain(name: str) -> str:
    return name.replace("\\", "/")


def _stem(plain: str) -> str:
    return os.path.splitext(plain)[0]
