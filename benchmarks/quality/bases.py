"""Bases that the benchmark trains itself, once, and keeps in `.cache/bench/quality`."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.harness.packages import FOLDER

from .task import Batch, frozen

KEEP = 0.995
"""The largest share of the mean weights that a step keeps. The first steps keep less."""


@dataclass(frozen=True)
class OwnBase:
    """The base class of tasks whose base model is trained here.

    A task has `recipe()`, which returns all that the base's weights depend on and a function that makes the
    untrained base. It also has `base_batches()`, the number of steps `base_steps` and the rate `base_lr`.
    """

    name: str
    steps: Mapping[str, int] = field(default_factory=lambda: {"short": 100, "long": 400}, hash=False)
    held_out_batches: Mapping[str, int] = field(default_factory=dict[str, int], hash=False)
    preset: str = "full"
    exclude: tuple[str, ...] = ()
    untuned: ClassVar[bool] = False

    def base(self) -> nn.Module:
        return copy.deepcopy(_base_of(self))

    def base_loss(self, module: nn.Module, batch: Batch) -> Tensor:
        task: Any = self
        return task.loss(module, batch)


@functools.cache
def _base_of(task: Any) -> nn.Module:
    recipe, make = task.recipe()
    batches, loss = task.base_batches, task.base_loss
    return trained(task.name, recipe, make, batches, loss, steps=task.base_steps, lr=task.base_lr)


def trained(
    name: str,
    recipe: object,
    make: Callable[[], nn.Module],
    batches: Callable[[], Iterator[Batch]],
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    steps: int,
    lr: float,
) -> nn.Module:
    """The trained model, frozen. It is read from its file if there is one, and trained otherwise.

    The file is named by the hash of `repr(recipe)`, which must say all that the weights depend on, except
    code. The weights are the mean
    over the last steps (an EMA).
    """
    place = FOLDER.parent / "quality"
    file = place / f"{name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:10]}.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        if not file.exists():
            state = _train(name, model, itertools.islice(batches(), steps), loss, steps, lr)
            place.mkdir(parents=True, exist_ok=True)
            # Renamed once it is whole, so that a killed run leaves no half file.
            part = file.with_name(f"{file.name}.part")
            save_file(state, part)
            part.replace(file)
    model.load_state_dict(load_file(file))
    return frozen(model)


def _train(
    name: str,
    model: nn.Module,
    batches: Iterator[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    steps: int,
    lr: float,
) -> dict[str, Tensor]:
    mean = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.05)
    began, losses = time.process_time(), list[float]()
    for step, batch in enumerate(batches, start=1):
        found = loss(model, batch)
        optimiser.zero_grad()
        found.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(found.detach()))
        with torch.no_grad():
            keep = min(KEEP, step / (step + 10))
            for kept, new in zip(mean.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - keep)
        if step % 250 == 0:
            print(
                f"base of {name}: step {step} of {steps}, loss {statistics.fmean(losses[-250:]):.4f}, "
                f"{time.process_time() - began:.0f} s of CPU",
                file=sys.stderr,
                flush=True,
            )
    return mean.state_dict()
