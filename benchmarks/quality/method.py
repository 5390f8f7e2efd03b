"""What a method of the benchmark is, and the parts that methods share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from lycoris_ops.modules.sites import Site

from .task import Batch, Task, sites
from .training import Adapted

PROBE_BATCHES = 8
"""How many batches of training a method may look at before it begins, where it does that."""
MORE_BATCHES = 32
"""How many the default plan looks at: the mean gradient of few batches is mostly chance."""

LARGE = ("text lines", "source code", "pictures")
"""The tasks whose trainings take half a minute or more."""
SMALL = ("characters", "series", "digits", "flow", "table")
"""Those whose trainings take some seconds. They have rows of fewer methods."""


@dataclass(frozen=True)
class Setting:
    """What a method is given: a new copy of the base, and what is to be trained."""

    task: Task
    module: nn.Module
    size: float
    """The rank of the LoRA that holds as many numbers, see `results.Run`."""
    seed: int
    steps: int

    @property
    def sites(self) -> dict[str, Site]:
        return sites(self.task, self.module)

    @property
    def budget(self) -> int:
        """The numbers of a LoRA of rank `size` on all sites."""
        return round(self.size * rank_one(self.sites))

    def probe_batches(self, count: int = PROBE_BATCHES) -> Iterator[Batch]:
        """Batches for a look ahead. They differ from the batches of the training."""
        return itertools.islice(self.task.batches(500_000 + self.seed, "train"), count)


@dataclass(frozen=True)
class Method:
    """A row of the comparison."""

    name: str
    sizes: tuple[float, ...]
    start: int
    """The learning rate at which the search starts, 10 ** (start / 4)."""
    adapt: Callable[[Setting], Adapted]
    tasks: tuple[str, ...] | None = None
    """The tasks on which it runs; None for all."""
    long: tuple[float, ...] = ()
    """Those of the sizes that have long trainings too."""

    def runs_on(self, task: Task) -> bool:
        return self.tasks is None or task.name in self.tasks


def rank_one(found: dict[str, Site]) -> int:
    """The numbers of a LoRA of rank 1 on these sites."""
    return sum(site.shape[0] + math.prod(site.shape[1:]) for site in found.values())


def trained(module: nn.Module) -> int:
    """The values of a module that are trained."""
    return sum(value.numel() for value in module.parameters() if value.requires_grad)
