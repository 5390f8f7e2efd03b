"""The record of a training, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from ..messages import phrase

StepLoss = tuple[int, float]
"""A step's number, from 1, and a loss."""
ERRORS = 2.0
"""Losses differ by more than the noise if they are more than so many standard errors apart."""


@dataclass(frozen=True)
class StepReport:
    """The results of one step."""

    step: int
    """Its number, from 1."""
    loss: float
    """The mean loss of its batches, before the step."""
    norm: float
    """The norm of all gradients together, before it is clipped."""
    lr: float
    """The rate of the first group of parameters."""
    skipped: bool = False
    """Whether nothing was changed, because the scaled gradients overflowed fp16. The scale is then halved,
    which is usual in the first steps."""


@dataclass
class History:
    """The losses of a training from its first step on, those before a resume included."""

    losses: list[StepLoss] = field(default_factory=list[StepLoss])
    """The loss of each step."""
    validation: list[StepLoss] = field(default_factory=list[StepLoss])
    """The held-out loss after some steps, beginning with step 0."""
    skipped: int = 0
    """How many steps were skipped, see `StepReport`."""
    draws: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    """The loss of each held-out batch at the first validation, the last and the best."""
    risen: float | None = None
    """The factor by which the loss, relative to the model alone, had risen at the last check for that, if it
    was too much, see `TrainOptions.rise`."""
    best_step: int | None = None
    """The step of `best`. States of older versions have none: theirs is the lowest loss."""

    @property
    def best(self) -> StepLoss | None:
        """The step with the lowest held-out loss, and that loss.

        It is the first validation, before any step, only as long as all later ones are worse by more than the
        noise.
        """
        kept = [entry for entry in self.validation if entry[0] == self.best_step]
        return min(kept or self.validation, key=lambda entry: entry[1], default=None)

    @property
    def waited(self) -> int:
        """How many validations came after the best one."""
        return len(self.validation) - 1 - self.validation.index(self.best) if self.best else 0

    def validated(self, step: int, draws: Sequence[float]) -> float:
        """Note the loss of each held-out batch after a step, and return their mean."""
        loss, best = sum(draws) / len(draws), self.best
        self.validation.append((step, loss))
        self.draws[step] = list(draws)
        first = self.validation[0][0]
        # Only the best weights are kept, so the start is never the best again.
        if best is None or (loss < best[1] if best[0] > first else not self.is_worse(step, first)):
            self.best_step = step
        kept = {first, step, self.best_step}
        self.draws = {step: losses for step, losses in self.draws.items() if step in kept}
        return loss

    def forget_validation(self) -> None:
        """Drop the held-out losses, because the held-out data are other ones now."""
        self.validation, self.draws, self.best_step = [], {}, None

    def is_worse(self, step: int, than: int) -> bool:
        """Whether the held-out loss after a step is higher than after another one by more than the noise.

        The noise is `ERRORS` standard errors std(d) / sqrt(n) of the differences d on the n held-out batches,
        which see the same random numbers. With one batch it is not known, and counts as 0.
        """
        losses = dict(self.validation)
        pairs = zip(self.draws.get(step, ()), self.draws.get(than, ()), strict=False)
        apart = [first - other for first, other in pairs]
        middle = losses[step] - losses[than]
        if len(apart) < 2:
            return middle > 0
        square = sum((difference - middle) ** 2 for difference in apart) / (len(apart) - 1)
        return middle > ERRORS * math.sqrt(square / len(apart))

    def verdict(self, step: int) -> tuple[bool, str]:
        """Whether the training made the model worse at its end, and a line that says what the held-out data
        tell of it. `step` is the one whose weights are saved."""
        if not self.validation and self.risen:
            return True, (phrase("R-model-became-worse-relative-model", risen=self.risen))
        if not self.validation:
            return False, phrase("R-nothing-tells-whether-model-became")
        (first, before), (last, end) = self.validation[0], self.validation[-1]
        best, lowest = self.best or (last, end)
        # The held-out data may be new since then.
        start = phrase("R-step-3", first=first) if first else phrase("R-start")
        since = phrase("R-in-2", start=start) if first else "before"
        line = phrase("R-held-out-loss-at-end", before=before, since=since, end=end, lowest=lowest, best=best)
        if self.is_worse(last, first):
            line += phrase("R-end-worse-than-try-lower", start=start)
        elif self.is_worse(last, best):
            line += phrase("R-end-worse-than-best")
        if step != last:
            of = phrase("R-step-4", step=step) if step else phrase("R-start")
            line += phrase("R-adapter-has-weights", of=of)
        return self.is_worse(last, best), line

    def state_dict(self) -> dict[str, Any]:
        """The history as plain values and tensors."""
        return {
            "losses": torch.tensor(self.losses, dtype=torch.float64).reshape(-1, 2),
            "validation": torch.tensor(self.validation, dtype=torch.float64).reshape(-1, 2),
            "skipped": self.skipped,
            "risen": self.risen,
            "best": self.best_step,
            "draws": {
                str(step): torch.tensor(draws, dtype=torch.float64) for step, draws in self.draws.items()
            },
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> History:
        """The history of a `state_dict`. States of older versions have no draws and no rise."""
        draws: Mapping[str, Any] = state.get("draws", {})
        return cls(
            _losses(state["losses"]),
            _losses(state["validation"]),
            state["skipped"],
            {int(step): losses.tolist() for step, losses in draws.items()},
            state.get("risen"),
            state.get("best"),
        )


def _losses(table: Any) -> list[StepLoss]:
    return [(int(step), loss) for step, loss in cast("Sequence[Sequence[float]]", table.tolist())]
