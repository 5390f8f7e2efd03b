"""Giving complete files their names: one file, or several that belong together, all or none."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import WriteError
from .locks import lock

EARLIER = ".earlier"
"""The ending that is added to a file's name while files that belong together are replaced."""

Mark = tuple[int, ...]
"""What tells a file from every other, whatever its name."""


def place(parts: Mapping[Path, Path], *, overwrite: bool) -> None:
    """Give files their names, which are all in one folder.

    `parts` has the file as it is called now, by the name that it gets. The first of several is the one that
    readers look for, and the others are read along with it. The folder is made where it is missing. With
    `overwrite` earlier files are replaced. Without it a name that is taken raises FileExistsError. After an
    error of any kind several files are as they were before; a single one may have its name already.

    Raises OSError where the system refuses, and WriteError where it also refuses to put earlier files back.
    """
    folder = next(iter(parts)).parent
    new = not folder.is_dir()
    if new:
        folder.mkdir(exist_ok=True)
    try:
        if not overwrite:
            _claim_all(parts)
        elif len(parts) > 1:
            _exchange(parts)
        else:
            for path, part in parts.items():
                os.replace(part, path)
    except BaseException:
        if new:
            # Not where another writer has put its files there.
            with suppress(OSError):
                folder.rmdir()
        raise
    sync(folder)
    if new:
        sync(folder.parent)


def sync(folder: Path) -> None:
    """Write the names in a folder through to the disk, so that they survive a power cut.

    Where the system cannot do that, nothing is done: the files are complete and have their names.
    """
    if sys.platform == "win32":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _claim_all(parts: Mapping[Path, Path]) -> None:
    marks = {path: _mark(part) for path, part in parts.items()}
    try:
        # The first one last: without it no reader looks at the others.
        for path in reversed(list(parts)):
            _claim(parts[path], path)
    except BaseException:
        # A single file has its name or has it not. If it has, it is complete, and may stay.
        if len(parts) > 1:
            _take_back(marks)
        raise


def _claim(part: Path, path: Path) -> None:
    """Give a file a name that no file has yet. Raises FileExistsError where one has it."""
    if sys.platform == "win32":
        # On Windows this replaces nothing.
        os.rename(part, path)
        return
    try:
        # A rename would replace a file that appeared after any check; a link does not.
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # exFAT and some network drives have no links: the name is taken by an empty file, which is replaced.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        try:
            os.replace(part, path)
        except BaseException:
            path.unlink()
            raise
        return
    part.unlink()


def _exchange(parts: Mapping[Path, Path]) -> None:
    """Replace files that belong together, so that no reader ever finds an earlier one beside a new one.

    The first one is moved aside before any other changes, and the new first one comes last. In between
    readers find none. If the process is killed there, the earlier files stay, with `EARLIER` at the end of
    their names, until the next exchange puts them back.
    """
    paths = list(parts)
    marks = {path: _mark(part) for path, part in parts.items()}
    with _alone_in(paths[0].parent):
        if os.path.lexists(paths[0]):
            # Of a process that was killed when all was done but this.
            _forget(paths)
        else:
            _put_back(paths)
        try:
            for path in paths:
                with suppress(FileNotFoundError):
                    os.replace(path, _earlier(path))
            # Or else a power cut could keep the later steps and lose this one.
            sync(paths[0].parent)
            for path in reversed(paths):
                os.replace(parts[path], path)
        except BaseException as error:
            try:
                _take_back(marks)
                _put_back(paths)
            except OSError as refused:
                raise WriteError(
                    "the files cannot be replaced, and the earlier ones cannot be put back",
                    file=str(paths[0]),
                    got=f"{error}; {refused}",
                    hint="The earlier ones are whole and in the same folder. Put each back by hand: take "
                    f"{EARLIER} from the end of its name",
                ) from error
            raise
        with suppress(OSError):
            _forget(paths)


@contextmanager
def _alone_in(folder: Path) -> Generator[None]:
    """A context in which no other process exchanges files in a folder, as far as the system has locks."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


def _earlier(path: Path) -> Path:
    return path.with_name(path.name + EARLIER)


def _put_back(paths: Iterable[Path]) -> None:
    """Give files that were moved aside their names back, the first one last."""
    for path in reversed(list(paths)):
        with suppress(FileNotFoundError):
            os.replace(_earlier(path), path)


def _forget(paths: Iterable[Path]) -> None:
    for path in paths:
        _earlier(path).unlink(missing_ok=True)


def _take_back(marks: Mapping[Path, Mark]) -> None:
    """Remove the files with these marks, where they have their names already."""
    for path, mark in marks.items():
        with suppress(FileNotFoundError):
            # By the mark, since an interrupt may come between a step and any note of it.
            if _mark(path) == mark:
                path.unlink()


def _mark(path: Path) -> Mark:
    found = path.lstat()
    # Not the number alone: some file systems have none.
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
