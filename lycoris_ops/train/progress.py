"""What a training shows while it runs: a bar on stderr, and TensorBoard."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from .. import processes
from ..files.writing import system_errors
from ..messages import phrase
from .extras import has, required
from .history import StepReport
from .race import RaceStep

MEASURED = 2
"""How many steps are timed to estimate the rest."""


class View(Protocol):
    """Something that follows a training."""

    def stepped(self, report: StepReport) -> None: ...
    def validated(self, step: int, loss: float) -> None: ...
    def close(self) -> None: ...


def views(bar: bool, log: str | os.PathLike[str] | None, done: int, total: int) -> list[View]:
    """The views to show, in the first process alone. Raises TrainError where TensorBoard is missing."""
    views_shown: list[View] = []
    if processes.rank() == 0:
        if log is not None:
            views_shown.append(Board(log))
        if bar:
            views_shown.append(ProgressBar(done, total) if has("tqdm") else Lines(done, total))
    return views_shown


class ProgressBar:
    """tqdm's progress bar, with the loss, a running mean of it, and the latest validation."""

    def __init__(self, done: int, total: int) -> None:
        tqdm: Any = required("tqdm", "tqdm", phrase("R-progress-bar"))
        self._bar = tqdm.tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)
        self._mean = Mean()
        self._shown: dict[str, str] = {}

    def stepped(self, report: StepReport) -> None:
        self._shown["loss"] = f"{self._mean(report.loss):.4g}"
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update()

    def validated(self, step: int, loss: float) -> None:
        self._shown[phrase("R-held-out")] = f"{loss:.4g}"

    def close(self) -> None:
        self._bar.close()


class Lines:
    """A line now and then, where tqdm is not installed."""

    SECONDS = 10.0

    def __init__(self, done: int, total: int) -> None:
        self._first, self._total = done, total
        self._mean = Mean()
        self._began = self._last = time.monotonic()

    def stepped(self, report: StepReport) -> None:
        mean = self._mean(report.loss)
        now = time.monotonic()
        if now - self._last >= self.SECONDS or report.step == self._total:
            self._last = now
            speed = (report.step - self._first) / max(now - self._began, 1e-9)
            left = (self._total - report.step) / speed
            line = phrase(
                "R-step-loss-steps-s-s",
                step=report.step,
                total=self._total,
                mean=mean,
                speed=speed,
                left=left,
            )
            print(line, file=sys.stderr)

    def validated(self, step: int, loss: float) -> None:
        print(phrase("R-step-held-out-loss", step=step, total=self._total, loss=loss), file=sys.stderr)

    def close(self) -> None:
        pass


class Board:
    """Curves in TensorBoard."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        board: Any = required("torch.utils.tensorboard", "tensorboard", "a log for TensorBoard")
        self._folder = Path(folder)
        self._writer = board.SummaryWriter(str(folder))

    def stepped(self, report: StepReport) -> None:
        for name, value in (
            ("loss", report.loss),
            ("gradient norm", report.norm),
            ("lr", report.lr),
        ):
            self._writer.add_scalar(f"train/{name}", value, report.step)

    def validated(self, step: int, loss: float) -> None:
        self._writer.add_scalar("validation/loss", loss, step)

    def close(self) -> None:
        with system_errors(self._folder):
            self._writer.close()


def searching() -> Callable[[RaceStep], None]:
    """A callback that reports a race on stderr: its budget, each heat, and an estimate in minutes."""
    began: list[float] = []

    def tell(now: RaceStep) -> None:
        if now.heat == 1 and now.step == 0:
            share = now.budget / now.total
            print(
                phrase("R-searching-at-most-steps-training", budget=now.budget, share=share), file=sys.stderr
            )
        if now.heat == 1 and now.step == MEASURED:
            # The first step takes longer than others.
            began.append(time.monotonic())
        if now.heat == 1 and now.step == 2 * MEASURED:
            minutes = (time.monotonic() - began[0]) / MEASURED * (now.budget - now.spent) / 60
            print(phrase("R-takes-about-minutes-at-most", minutes=minutes), file=sys.stderr)
        if now.step == 0:
            print(now, file=sys.stderr)

    return tell


class Mean:
    """A running mean of about the last 20 values."""

    def __init__(self) -> None:
        self._value: float | None = None

    def __call__(self, value: float) -> float:
        self._value = value if self._value is None else 0.95 * self._value + 0.05 * value
        return self._value
