"""Which files this process has opened, and which it still holds."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_OPENED: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str):
        _OPENED.append(arguments[0])


# Python has no way to remove a hook, so there is one for the whole process.
sys.addaudithook(_audit)


def opened(path: Path) -> int:
    """How often a file was opened since this module was imported."""
    return _OPENED.count(str(path.resolve()))


def held(path: Path) -> bool:
    """Whether this process has a file open or mapped into memory. Works on Linux only."""
    name = str(path.resolve())
    descriptors = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    links = [os.readlink(link) for link in descriptors if os.path.lexists(link)]
    # A file can stay mapped after its descriptor is closed.
    return name in links or name in Path("/proc/self/maps").read_text()
