"""The claim of a training on its folder, so that no second training writes there.

The claim is a file in the folder, with the host's name and the process. While the training runs, it locks the
file, and sets the file's time again and again. The system ends a lock with its process, whatever the clocks
say and whoever gets the process number next. On a drive whose locks reach only one machine, the file's time
tells the others, by that drive's own clock.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from ..errors import WriteError
from ..files.json_text import parse_json
from ..files.writing import system_errors
from ..messages import phrase

CLAIM = "running.json"
"""The file in a folder of checkpoints whose training runs now."""
BEAT = 10.0
"""Seconds between two signs of life."""
LOST = 60.0
"""After how many seconds without one a training on another machine counts as ended."""
PATIENCE = 0.5
"""How many seconds a lock may be held by those who only look."""
FAR = 1 << 20
"""The byte that is locked on Windows, where a locked byte cannot be read: it is behind the text."""
REFUSED = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
"""The errors of a lock that another holds."""

_held: dict[Path, int] = {}
"""The claimed folders of this process, each with the thread that claimed it."""


@contextmanager
def claimed(folder: Path) -> Generator[None]:
    """A context in which this thread alone may train in a folder. It may be nested.

    Makes the folder, and removes it at the end if nothing is in it and a training made it: this one, or one
    that was killed. Raises WriteError where a training runs there.
    """
    home = Path(os.path.realpath(folder))
    if _held.get(home) == threading.get_ident():
        yield
        return
    with system_errors(folder):
        ours = not home.exists() or (home / CLAIM).exists()
        home.mkdir(parents=True, exist_ok=True)
    path = home / CLAIM
    with system_errors(path):
        handle = _taken(path)
    if handle is None:
        raise _busy(folder)
    ended = threading.Event()
    threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
    _held[home] = threading.get_ident()
    try:
        yield
    finally:
        del _held[home]
        ended.set()
        _leave(handle, path)
        if ours:
            with suppress(OSError):
                home.rmdir()


def check_unclaimed(folder: Path) -> None:
    """Raise WriteError where a training runs in a folder, unless this thread has claimed it."""
    if _held.get(Path(os.path.realpath(folder))) != threading.get_ident() and running_in(folder):
        raise _busy(folder)


def running_in(folder: str | os.PathLike[str]) -> str | None:
    """The process that trains in a folder of checkpoints now, in words; None where none does."""
    path = Path(os.path.realpath(folder)) / CLAIM
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        alive = _is_alive(handle, path)
    finally:
        os.close(handle)
    return _owner(path) if alive else None


def is_vacant(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds nothing, or nothing but the claim of a training that was killed."""
    try:
        held = set(os.listdir(folder))
    except OSError:
        return False
    return held <= {CLAIM} and running_in(folder) is None


def _taken(path: Path) -> int | None:
    """A handle of the claim, which is this process's now; None where another has it."""
    while True:
        try:
            handle, new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            try:
                handle, new = os.open(path, os.O_RDWR), False
            except FileNotFoundError:
                continue
        try:
            if (_lock(handle) is False) if new else _is_alive(handle, path):
                os.close(handle)
                return None
            # Its owner may have removed the file before the lock was free.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                began = time.strftime("%Y-%m-%d %H:%M")
                known = {"host": socket.gethostname(), "process": os.getpid(), "began": began}
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps(known).encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _leave(handle: int, path: Path) -> None:
    """Remove a claim. Windows removes no open file. Elsewhere a file without its lock may be another's."""
    if sys.platform == "win32":
        os.close(handle)
    with suppress(OSError):
        path.unlink()
    if sys.platform != "win32":
        os.close(handle)


def _is_alive(handle: int, path: Path) -> bool:
    """Whether the training of a claim runs. If not, the claim is locked for this handle, where locks work."""
    locked = _lock(handle)
    if locked is False:
        return True
    if locked and _read(path).get("host") == socket.gethostname():
        return False
    return _age(handle, path) < LOST


def _lock(handle: int) -> bool | None:
    """Lock a file: True where it is locked now, False where another has it, None on a drive without locks."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            if sys.platform == "win32":
                import msvcrt

                os.lseek(handle, FAR, os.SEEK_SET)
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
                os.lseek(handle, 0, os.SEEK_SET)
            else:
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in REFUSED:
                return None
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        else:
            return True


def _age(handle: int, path: Path) -> float:
    """The seconds since the last sign of life, by the clock of the drive."""
    probe = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        probe.touch(exist_ok=False)
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        now = time.time()
    return now - os.fstat(handle).st_mtime


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            # It may be anybody's file, however deep its JSON is.
            content = parse_json(file.read(FAR))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, object]", content) if isinstance(content, dict) else {}


def _owner(path: Path) -> str:
    known = _read(path)
    if not known:
        return "another process"
    return f"process {known.get('process')} on {known.get('host')}, since {known.get('began')}"


def _busy(folder: Path) -> WriteError:
    return WriteError(
        "E-folder-in-use", file=str(folder), got=running_in(folder) or phrase("R-has-ended-since")
    )
