"""This project's planned networks: a probe on some batches first, then ranks and starts from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from unittest import mock

import lycoris_ops as lyc
from lycoris_ops.ranks import choice
from lycoris_ops.ranks.gains import Probed

from ..method import LARGE, MORE_BATCHES, PROBE_BATCHES, SMALL, Method, Setting
from ..training import Adapted
from .ours import adapted

BUDGETS = (0.25, 1, 4, 6)
"""Up to about 0.4 of the largest uniform LoRA, which is of rank 16."""
LORA = "planned by roots, gradient"
MORE = f"planned by roots, {MORE_BATCHES} batches"
"""What the default was before it divided by the first step: by roots, on more batches than the others."""
AUTO = "auto"
"""What the command line and the node plan unless they are told otherwise."""


def _norms(layer: Probed) -> list[float]:
    """The norm of each component, which is s_j for LoRA."""
    return [math.sqrt(max(0.0, after - before)) for before, after in itertools.pairwise((0.0, *layer.gains))]


CRITERIA: Mapping[str, Callable[[Probed], Sequence[float]]] = {
    "first step": lambda layer: layer.first_steps,
    "energy": lambda layer: layer.gains,
    "roots": lambda layer: list(itertools.accumulate(map(math.sqrt, _norms(layer)))),
}
"""What each rank of a layer is worth. The first is the library's, and the last was before."""


def judged(found: lyc.Probe, criterion: str) -> lyc.Probe:
    """The probe, of which budgets are divided by a criterion."""
    layers = {
        path: replace(layer, first_steps=tuple(CRITERIA[criterion](layer)))
        for path, layer in found.layers.items()
    }
    return replace(found, layers=layers)


def probed(setting: Setting, batches: int = PROBE_BATCHES) -> lyc.Probe:
    return lyc.probe(
        setting.module,
        list(setting.probe_batches(batches)),
        setting.task.loss,
        preset=setting.task.preset,
        exclude=setting.task.exclude,
        seed=setting.seed,
    )


def planned(
    setting: Setting,
    *,
    start: bool = True,
    batches: int = PROBE_BATCHES,
    criterion: str = "roots",
) -> Adapted:
    """A plan within the budget, divided by a criterion; with `start` its layers begin at the gradient."""
    found = judged(probed(setting, batches), criterion)
    size = lyc.Budget(parameters=setting.budget)
    # Also where a uniform rank would capture more.
    with mock.patch.object(choice, "WORTH", 0.0):
        plan = lyc.plan_ranks(found, size=size)
    return adapted(setting, plan=plan if start else replace(plan, probe=None))


def more(setting: Setting) -> Adapted:
    return planned(setting, batches=MORE_BATCHES)


def default(setting: Setting) -> Adapted:
    """What the command line and the node plan unless they are told otherwise."""
    found = lyc.probe(
        setting.module,
        setting.probe_batches(MORE_BATCHES),
        setting.task.loss,
        preset=setting.task.preset,
        exclude=setting.task.exclude,
        least=PROBE_BATCHES,
        seed=setting.seed,
    )
    return adapted(setting, plan=lyc.plan_ranks(found, size=lyc.Budget(parameters=setting.budget)))


def uniform(setting: Setting) -> Adapted:
    """LoRA of one rank everywhere that begins at the gradient."""
    plan = lyc.plan_ranks(probed(setting), size=lyc.Rank(int(setting.size)))
    return adapted(setting, plan=plan)


METHODS = (
    Method("LoRA, gradient", (1, 4), -8, uniform, LARGE, long=(4,)),
    Method("LoRA, gradient", (1, 4), -8, uniform, SMALL),
    Method("planned", (4,), -10, lambda setting: planned(setting, start=False), LARGE),
    Method(LORA, BUDGETS, -8, planned, LARGE),
    Method(LORA, (1, 4), -8, planned, SMALL),
    Method(MORE, (1, 4, 6), -8, more, LARGE, long=(4, 6)),
    Method(MORE, (1, 4), -8, more, SMALL),
    Method(AUTO, (1, 4), -8, default, long=(1, 4)),
    *(
        Method(
            f"planned by {criterion}, gradient",
            (1, 4),
            -8,
            lambda setting, criterion=criterion: planned(setting, criterion=criterion),
        )
        for criterion in ("first step", "energy")
    ),
)
