"""What the page shows of a training: its stage, the curves, and the pictures that were sampled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ....lycoris_ops import History, RaceStep, StepReport
from ...host.files import output_name
from ...host.page import end_if_interrupted, progress

T = TypeVar("T")

PAUSE = 0.25
"""Seconds between two messages to the page."""
POINTS = 240
"""The most points of a curve."""

running: dict[str, dict[str, Any]] = {}
"""The last message of each running training, by the id of its node. It is for pages that open meanwhile."""


class Live:
    """Tells the page how far a training is.

    `tell` sends a message: the present stage, its count, and the values of `shown`.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None], steps: int) -> None:
        self.tell = tell
        self.steps = steps
        self.history = History()
        self.folder: Path | None = None
        self.resumed = 0
        self.other = ""
        """The name of the stopped training that this one leaves as it is; empty for none."""
        self._update = progress(steps)
        self._first: int | None = None
        self._raced: tuple[float, float] | None = None
        """What the race had cost after its first step, and when that was."""
        self._began = self._told = 0.0

    def stage(self, name: str, done: int, of: int, **more: Any) -> None:
        """Tell what is done now, and end the work if the user has interrupted the run."""
        end_if_interrupted()
        now = time.monotonic()
        if done in (0, of) or now - self._told >= PAUSE:
            self._told = now
            step = self.history.losses[-1][0] if self.history.losses else self.resumed
            known = {} if self.folder is None else shown(self.history, self.folder)
            count = {"stage": name, "done": done, "of": of, "step": step, "steps": self.steps}
            self.tell({**count, "resumed": self.resumed, "other": self.other, **known, **more})

    def counted(self, name: str, values: Sequence[T]) -> Iterator[T]:
        """Yield the values, and tell the page the number of each."""
        for number, value in enumerate(values, 1):
            self.stage(name, number, len(values))
            yield value

    @property
    def has_stepped(self) -> bool:
        """Whether this run has made a step of the training."""
        return self._first is not None

    def raced(self, step: RaceStep) -> None:
        now = time.monotonic()
        if self._raced is None and step.step:
            self._raced = (step.spent, now)
        first, began = self._raced or (step.spent, now)
        pace = (now - began) / (step.spent - first) if step.spent > first else None
        self._update(round(step.spent), round(step.budget))
        words = {"heat": step.heat, "heats": step.of, "entrant": step.name, "rate": f"{step.lr:g}"}
        self.stage("searching", round(step.spent), round(step.budget), pace=pace, **words)

    def stepped(self, report: StepReport) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = report.step, now
        self.history.losses.append((report.step, report.loss))
        steps = report.step - self._first
        pace = (now - self._began) / steps if steps else None
        # One more than the steps: after the last one the file and the last sample are made.
        self._update(report.step, self.steps + 1)
        self.stage("training", report.step, self.steps, loss=report.loss, pace=pace)

    def validated(self, step: int, loss: float) -> None:
        self.history.validation.append((step, loss))


def shown(history: History, folder: Path) -> dict[str, Any]:
    """The curves and the sampled pictures of a training, as the page draws them."""
    # Leave out files without a step in their names, such as copies that users make.
    numbered = ((path.stem.removeprefix("sample-"), path) for path in sorted(folder.glob("sample-*.png")))
    return {
        "name": folder.name.removesuffix("-checkpoints"),
        "folder": output_name(folder),
        "losses": thinned(history.losses),
        "validation": thinned(history.validation),
        "samples": [[int(step), path.stat().st_mtime] for step, path in numbered if step.isdecimal()],
    }


def thinned(points: Sequence[tuple[int, float]]) -> list[list[float]]:
    """A curve in at most `POINTS` points: means of neighbours."""
    size = -(-len(points) // POINTS) or 1
    groups: Iterable[Sequence[tuple[int, float]]] = (
        points[at : at + size] for at in range(0, len(points), size)
    )
    return [[group[-1][0], sum(loss for _, loss in group) / len(group)] for group in groups]
