"""Handle the signals that end a process: Ctrl-C (SIGINT) and SIGTERM.

Importing the command line takes seconds. Once this module is imported, a signal during these seconds ends the
process with one line and the exit status that shells expect. Inside a verb the signals raise exceptions, so
that unfinished files are removed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """Raised for SIGTERM, which ends a process as Ctrl-C does."""


def status_of(error: KeyboardInterrupt) -> int:
    """The exit status that shells report for a command that a signal ended."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    # Raise no exception: the module that is being imported might catch it.
    os.write(2, b"error: terminated\n" if number == signal.SIGTERM else b"error: interrupted\n")
    os._exit(128 + number)


def _raise(number: int, _: FrameType | None) -> NoReturn:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def raised() -> Generator[None]:
    """A context where both signals raise in the main thread: KeyboardInterrupt and Terminated."""
    with _handled(_raise, _heeded):
        yield


@contextmanager
def uninterrupted() -> Generator[None]:
    """A context that delays the exceptions of both signals until its end."""
    came: list[tuple[int, FrameType | None]] = []

    def _noted(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))

    before: dict[int, Any] = {}
    try:
        with _handled(_noted, callable) as before:
            yield
    finally:
        if came:
            before[came[0][0]](*came[0])


def _heeded(handler: object) -> bool:
    """Whether a signal is not ignored, and Python can restore its handler.

    Shells make background commands ignore Ctrl-C.
    """
    return handler is not None and handler is not signal.SIG_IGN


@contextmanager
def _handled(handler: Any, replaces: Any) -> Generator[dict[int, Any]]:
    """A context that replaces the handlers that `replaces` accepts, and yields the old ones.

    Does nothing outside the main thread, where Python handles no signals.
    """
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for each in SIGNALS:
                if replaces(previous := signal.getsignal(each)):
                    before[each] = previous
                    signal.signal(each, handler)
        yield before
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


if sys.argv[:1] == ["-m"] and __package__ in sys.orig_argv:
    for each in SIGNALS:
        if _heeded(signal.getsignal(each)):
            signal.signal(each, _leave)
