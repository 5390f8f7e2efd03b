"""Locks on open files and folders, which the system drops with the process, however that ends."""

from __future__ import annotations

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def lock(handle: int, *, wait: bool) -> bool:
    """Lock an open file or folder until it is closed, against all other processes and threads that lock it.

    Returns whether there are such locks where it is: Windows has none, and some network drives have none.
    Raises BlockingIOError where another one holds it, unless `wait` is on.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
