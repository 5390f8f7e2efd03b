"""What the node shows while it trains."""

from __future__ import annotations

import time
from datetime import timedelta

from PIL import Image

from ....lycoris_ops import History, StepReport, curves_picture
from ...host.page import progress
from .previews import Previews

PREVIEW = 1.0
"""Seconds between two pictures of the curves on the node."""


class Live:
    """What the node shows while it trains: how far it is, the curves, and the latest sample."""

    def __init__(self, steps: int, previews: Previews) -> None:
        self.steps = steps
        self.previews = previews
        self.sample: Image.Image | None = None
        self.history = History()
        self._update = progress(steps)
        self._first: int | None = None
        self._began = self._drawn = time.monotonic()

    def stepped(self, report: StepReport) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = report.step, now
        self.history.losses.append((report.step, report.loss))
        picture = None
        due = self.previews.due(report.step)
        if due:
            self.sample = self.previews.make(report.step)
        if due or now - self._drawn >= PREVIEW:
            self._drawn = now
            picture = curves_picture(self.history, self.steps, self._title(report.step, now))
            picture = picture if self.sample is None else beside(picture, self.sample)
        self._update(report.step, self.steps, picture)

    def validated(self, step: int, loss: float) -> None:
        self.history.validation.append((step, loss))

    def _title(self, step: int, now: float) -> str:
        made = step - (self._first or 0)
        if not made:
            return f"step {step} of {self.steps}"
        seconds = (now - self._began) / made
        left = timedelta(seconds=round((self.steps - step) * seconds))
        return f"step {step} of {self.steps}, {seconds:.2f} s a step, {left} left"


def beside(first: Image.Image, second: Image.Image) -> Image.Image:
    """Two pictures beside each other, the second in the height of the first."""
    width = round(second.width * first.height / second.height)
    both = Image.new("RGB", (first.width + width, first.height), "white")
    both.paste(first, (0, 0))
    both.paste(second.resize((width, first.height)), (first.width, 0))
    return both
