"""What a task of the benchmark is: a trained base, batches, a loss."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lycoris_ops.modules.sites import Site, select

Split = Literal["train", "tune", "test"]
"""Adapters are trained on "train", learning rates are chosen on "tune", figures are of "test"."""
Batch = Any
"""What a task's loss takes: all its noise and timesteps are in it."""

FIXED = {"tune": 1_000_001, "test": 1_000_002}
"""The seed of the batches of a split that stay the same for all methods and seeds."""


class Task(Protocol):
    """A task: frozen data. Its `repr` gives all that its figures depend on."""

    @property
    def name(self) -> str: ...

    @property
    def steps(self) -> Mapping[str, int]:
        """The steps of a training, by its length: "short" or "long"."""
        ...

    @property
    def held_out_batches(self) -> Mapping[str, int]:
        """How many batches "tune" and "test" have."""
        ...

    @property
    def preset(self) -> str: ...

    @property
    def exclude(self) -> tuple[str, ...]: ...

    @property
    def untuned(self) -> bool:
        """Whether nothing of any method is chosen by figures of this task, before the last run.

        Criteria, default rates and candidates are chosen on the others. What is said of methods in general is
        said of these tasks first. (The learning rate of each row is searched for here as everywhere.)
        """
        ...

    def base(self) -> nn.Module:
        """A new copy of the trained model, frozen and in evaluation mode."""
        ...

    def batches(self, seed: int, split: Split) -> Iterator[Batch]:
        """Endless batches, in an order and with noise of this seed."""
        ...

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch."""
        ...


@functools.cache
def digest(task: Task) -> str:
    """A name of everything that the figures of a task depend on, as far as the task states it."""
    return hashlib.sha256(repr(task).encode()).hexdigest()[:10]


def sites(task: Task, module: nn.Module) -> dict[str, Site]:
    """The layers of the base that are adapted, by path."""
    return select(module, preset=task.preset, exclude=task.exclude)


@functools.cache
def fixed(task: Task, split: Split) -> list[Batch]:
    return list(itertools.islice(task.batches(FIXED[split], split), task.held_out_batches[split]))


@torch.no_grad()
def held_out(task: Task, module: nn.Module, split: Split) -> float:
    """The mean loss over the fixed batches of a split; infinity where it is not finite."""
    training = module.training
    module.eval()
    losses = [float(task.loss(module, batch)) for batch in fixed(task, split)]
    module.train(training)
    mean = sum(losses) / len(losses)
    return mean if math.isfinite(mean) else math.inf


def frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)
