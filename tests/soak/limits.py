"""The limits that each file is held to: CPU time and memory."""

from __future__ import annotations

import faulthandler
import resource
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

SECONDS = 6.0
"""CPU seconds that all stages of one file may take together: two to open it, and one to write it again."""
BYTES = 1 << 30
"""Bytes of memory that a file may take above what the process had before."""
KILLED_AFTER = 6
"""Further CPU seconds after which a process is killed that is in code where no exception can be raised."""
ADDRESSES = 2 << 30
"""Bytes of address space that may be reserved above what the process had before. Memory that is reserved
and not used does not count for `BYTES`, so this bound is larger."""


class OutOfTimeError(BaseException):
    """A file took more than `SECONDS`. It is no Exception, so that no handler of the library takes it."""


class Limits:
    """Holds one process to the limits, file by file."""

    def __init__(self, traces: IO[str]) -> None:
        """`traces` gets the stack of a process that is killed."""
        self.seconds = SECONDS
        self.left = SECONDS
        self._before = 0
        faulthandler.enable(traces)
        faulthandler.register(signal.SIGXCPU, traces, all_threads=False, chain=True)
        signal.signal(signal.SIGPROF, self._ring)

    @staticmethod
    def _ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    def begin(self) -> None:
        """Begin a file."""
        self.left = self.seconds
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = int(used.ru_utime + used.ru_stime + self.seconds) + 1 + KILLED_AFTER
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (spent, hard))
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ADDRESSES, hard))
        # Sets the peak that `VmHWM` tells back to what is used now.
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    @property
    def used(self) -> float:
        """CPU seconds of this file so far."""
        return self.seconds - self.left

    def end(self) -> int:
        """End a file; returns the bytes of memory that it took at most."""
        # Where a file was too slow, the time of the next ones starts anew.
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        return _status("VmHWM") - self._before

    @contextmanager
    def lifted(self) -> Generator[None]:
        """A context in which time has no limit."""
        self.seconds = 3600.0
        try:
            yield
        finally:
            self.seconds = SECONDS

    @contextmanager
    def spending(self) -> Generator[None]:
        """A context whose CPU time counts. Raises OutOfTimeError inside where the file has none left."""
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, max(self.left, 0.01))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.left -= time.process_time() - started


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise LookupError(name)
