"""How far a work in steps is."""

from __future__ import annotations

import time

from ..files.writing import Progress

OFTEN = 0.2
"""Seconds between two calls of a progress within a step."""


class Steps:
    """Tells a progress what is done of a work: after each step, and now and then within one.

    A progress may end the work, by an interrupt.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.total = total
        self._progress = progress
        self._done = 0
        self._told = 0.0

    def step(self) -> None:
        """A step is done."""
        self._done += 1
        self._told = 0.0
        self.pause()

    def pause(self) -> None:
        """Tell the progress, if a while has passed; see `maths.decompositions.Pause`."""
        if self._progress and time.monotonic() - self._told > OFTEN:
            self._progress(min(self._done, self.total), self.total)
            self._told = time.monotonic()
