"""One training of an adapter, the same for every method."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .task import Task, held_out

POINTS = 6
"""How many times the held-out loss is measured on the way, the last time at the end."""
WARM_UP = 0.05
"""The share of the steps over which the learning rate rises. It falls as a cosine to 0 after that."""


def _nothing(optimiser: torch.optim.Optimizer, step: int) -> None:
    return


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """What a method makes of the base: a module to train, and how its training differs."""

    module: nn.Module
    groups: Callable[[float], list[dict[str, Any]]]
    """The parameters for the optimiser at a learning rate."""
    numbers: Callable[[], int]
    """How many numbers the adapter's file would hold if it were written now."""
    after_step: Callable[[torch.optim.Optimizer, int], None] = _nothing
    """Called with the step's number, from 1, after the optimiser's step and before gradients are cleared."""
    penalty: Callable[[], Tensor] | None = None
    """What a method adds to the loss."""

    @property
    def acts_between_steps(self) -> bool:
        return self.after_step is not _nothing


@dataclass(frozen=True)
class Outcome:
    curve: list[tuple[int, float]]
    """Numbers of steps, each with the held-out loss on "test" after them."""
    tune: float
    """The held-out loss on "tune" at the end."""
    step_seconds: float
    """CPU time of a step."""


def train(task: Task, adapted: Adapted, *, lr: float, seed: int, steps: int) -> Outcome:
    """Train with AdamW, without weight decay, on the batches of the seed.

    A loss that is not finite ends the training: the held-out losses from there on are infinite.
    """
    curve: list[tuple[int, float]] = []
    points = {round(steps * number / POINTS) for number in range(1, POINTS + 1)}
    spent, finite = 0.0, True
    for step in stepped(task, adapted, lr=lr, seed=seed, steps=steps):
        finite = step.finite
        spent += step.seconds
        if finite and step.number in points:
            curve.append((step.number, held_out(task, adapted.module, "test")))
    curve += [(step, math.inf) for step in sorted(points) if not curve or step > curve[-1][0]]
    tune = held_out(task, adapted.module, "tune") if finite else math.inf
    return Outcome(curve, tune, spent / steps)


@dataclass(frozen=True)
class Step:
    number: int
    """From 1."""
    seconds: float
    """CPU time."""
    finite: bool
    """Whether its loss was finite. If it was not, this step is the last."""


def stepped(task: Task, adapted: Adapted, *, lr: float, seed: int, steps: int) -> Iterator[Step]:
    """The steps of a training, each taken when it is asked for."""
    optimiser = torch.optim.AdamW(adapted.groups(lr), weight_decay=0.0)
    for number, batch in enumerate(itertools.islice(task.batches(seed, "train"), steps), start=1):
        began = time.process_time()
        _set_rates(optimiser, rate(number, steps))
        loss = task.loss(adapted.module, batch)
        finite = bool(torch.isfinite(loss))
        if finite:
            (loss if adapted.penalty is None else loss + adapted.penalty()).backward()
            optimiser.step()
            adapted.after_step(optimiser, number)
            optimiser.zero_grad(set_to_none=True)
        yield Step(number, time.process_time() - began, finite)
        if not finite:
            return


def rate(step: int, steps: int) -> float:
    """The learning rate's factor in a step from 1 to `steps`."""
    warm = max(1, round(WARM_UP * steps))
    if step <= warm:
        return step / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm + 1)))


def _set_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    for group in optimiser.param_groups:
        # A method may add groups on the way: the first rate that is seen is the group's own.
        group["lr"] = group.setdefault("own_lr", group["lr"]) * factor
