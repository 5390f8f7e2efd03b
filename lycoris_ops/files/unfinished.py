"""Unfinished files: how they are named, how their writer holds them, and how those of dead writers go away.

A writer that is killed cannot clean up, so the next one in the same folder does. It must not touch the file
of a writer that is still at work. A lock on the file tells them apart: the system drops it with the process,
however that ends. A process id would not do, since ids are used again, and mean nothing in another container
or on another machine. A lock is believed only if the file was begun on this machine since it was started,
because some network drives keep the locks of each machine to themselves. Any other file must not have changed
for a day. Windows has no such locks: there too a file must not have changed for a day, and moreover the
system refuses to remove one that is open.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from .locks import lock

ENDING = ".part"
"""The ending of unfinished files. No program takes it for a model's."""
STALE = 24 * 60 * 60
"""Seconds without a change after which a file that no lock tells about is taken for a dead writer's. No
writer needs as long for one tensor, and no clocks of two machines differ by as much."""
NAME = re.compile(rf"\..+\.([0-9a-f]{{8}})?[0-9a-f]{{8}}{re.escape(ENDING)}", re.DOTALL)
"""The names of unfinished files. Those of earlier versions have only the second group of digits."""


def _machine() -> str:
    """Eight digits for this machine since it was started: locks work among all who get the same ones."""
    try:
        # The same in every container of a machine, whose locks are one system's too.
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        text = platform.node()
    return hashlib.sha256(text.encode()).hexdigest()[:8]


MACHINE = _machine()


def unfinished(folder: Path, name: str) -> BinaryIO:
    """A new file in a folder, open for writing, for a file that will have this name. Raises OSError.

    Until it is closed no other writer takes it for a rest.
    """
    while True:
        # A random part, so that two writers of one name do not meet.
        path = folder / f".{name}.{MACHINE}{secrets.token_hex(4)}{ENDING}"
        file = cast("BinaryIO", path.open("xb"))
        try:
            lock(file.fileno(), wait=False)
            if path.exists():
                return file
        except BlockingIOError:
            pass
        except BaseException:
            file.close()
            path.unlink(missing_ok=True)
            raise
        # Another writer took it for a rest, in the moment before it was locked.
        file.close()


def sweep(folder: Path) -> None:
    """Remove the unfinished files of dead writers from a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if found := NAME.fullmatch(entry.name):
                # One that cannot be removed is no reason not to write another file.
                with suppress(OSError):
                    _remove_if_dead(Path(entry.path), here=found[1] == MACHINE)


def _remove_if_dead(path: Path, *, here: bool) -> None:
    """Remove an unfinished file if its writer is dead. Raises OSError where it lives.

    `here` says whether the file was begun on this machine since it was started.
    """
    stale = time.time() - path.stat().st_mtime > STALE
    if path.is_dir():
        # Earlier versions began a file in a folder of its own.
        if stale:
            shutil.rmtree(path)
        return
    if sys.platform == "win32":
        if stale:
            path.unlink()
        return
    with path.open("r+b") as file:
        # Removed while it is locked, so that its writer cannot begin in between.
        if (lock(file.fileno(), wait=False) and here) or stale:
            path.unlink()
