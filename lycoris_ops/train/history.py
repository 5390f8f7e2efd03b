"""The record of a training, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

StepLoss = tuple[int, float]
"""A step's number, from 1, and a loss."""


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

    @property
    def best(self) -> StepLoss | None:
        """The step with the lowest held-out loss, and that loss."""
        return min(self.validation, key=lambda one: one[1], default=None)

    @property
    def waited(self) -> int:
        """How many validations came after the best one."""
        return len(self.validation) - 1 - self.validation.index(self.best) if self.best else 0

    def state_dict(self) -> dict[str, Any]:
        """The history as plain values and tensors."""
        return {
            "losses": torch.tensor(self.losses, dtype=torch.float64).reshape(-1, 2),
            "validation": torch.tensor(self.validation, dtype=torch.float64).reshape(-1, 2),
            "skipped": self.skipped,
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> History:
        """The history of a `state_dict`."""
        return cls(_losses(state["losses"]), _losses(state["validation"]), state["skipped"])


def _losses(table: Any) -> list[StepLoss]:
    return [(int(step), loss) for step, loss in cast("Sequence[Sequence[float]]", table.tolist())]
