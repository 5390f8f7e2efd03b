"""Report the progress of work in steps."""

from __future__ import annotations

import time

from ..files.writing import Progress

OFTEN = 0.2
"""Seconds between two calls of `progress` within a step."""


class Steps:
    """Calls `progress` with the steps done and their total: after each step, and now and then within one.

    `progress` may raise to end the work.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.total = total
        self._progress = progress
        self._done = 0
        self._last_call = 0.0

    def step(self) -> None:
        """Count a step as done."""
        self._done += 1
        self._last_call = 0.0
        self.pause()

    def pause(self) -> None:
        """Call `progress` if the last call was more than OFTEN ago. See `maths.decompositions.Pause`."""
        if self._progress and time.monotonic() - self._last_call > OFTEN:
            self._progress(min(self._done, self.total), self.total)
            self._last_call = time.monotonic()
