"""This project's planned networks: a probe on some batches first, then ranks, kinds and starts from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from unittest import mock

import lycoris_ops as lyc
from lycoris_ops.algorithms.fitting import Offer
from lycoris_ops.ranks import choice

from ..method import LARGE, MORE_BATCHES, PROBE_BATCHES, SMALL, Method, Setting
from ..training import Adapted
from .ours import adapted

KINDS = ("lora", "lokr")
BUDGETS = (0.25, 1, 4, 6)
"""Up to about 0.4 of the largest uniform LoRA, which is of rank 16."""
LORA = "planned by roots, gradient"
MORE = f"planned by roots, {MORE_BATCHES} batches"
"""What the default was before it divided by the first step: by roots, on more batches than the others."""
AUTO = "auto"
"""What the command line and the node plan unless they are told otherwise."""


def _norms(offer: Offer) -> list[float]:
    """The norm of each component, which is s_j for LoRA."""
    return [math.sqrt(max(0.0, after - before)) for before, after in itertools.pairwise((0.0, *offer.kept))]


CRITERIA: Mapping[str, Callable[[Offer], Sequence[float]]] = {
    "first step": lambda offer: offer.first_steps,
    "energy": lambda offer: offer.kept,
    "roots": lambda offer: list(itertools.accumulate(map(math.sqrt, _norms(offer)))),
}
"""What each size of an offer is worth. The first is the library's, and the last was before."""


def judged(found: lyc.Probe, criterion: str) -> lyc.Probe:
    """The probe. A criterion divides budgets by it."""
    layers = {
        path: replace(
            layer,
            offers=tuple(
                replace(offer, first_steps=tuple(CRITERIA[criterion](offer))) for offer in layer.offers
            ),
        )
        for path, layer in found.layers.items()
    }
    return replace(found, layers=layers)


def probed(setting: Setting, algorithms: str | Sequence[str], batches: int = PROBE_BATCHES) -> lyc.Probe:
    return lyc.probe(
        setting.module,
        list(setting.probe_batches(batches)),
        setting.task.loss,
        preset=setting.task.preset,
        exclude=setting.task.exclude,
        algorithms=algorithms,
        seed=setting.seed,
    )


def planned(
    setting: Setting,
    algorithms: str | Sequence[str],
    *,
    start: bool = True,
    batches: int = PROBE_BATCHES,
    criterion: str = "roots",
) -> Adapted:
    """A plan within the budget, divided by a criterion; with `start` its layers begin at the gradient."""
    found = judged(probed(setting, choice.AUTO if algorithms == "auto" else algorithms, batches), criterion)
    size = lyc.Budget(parameters=setting.budget)
    # Also where a uniform rank would capture more.
    with mock.patch.object(choice, "WORTH", 0.0):
        plan = lyc.plan_ranks(found, size=size, algorithms=algorithms)
    return adapted(setting, plan=plan if start else replace(plan, probe=None))


def more(setting: Setting) -> Adapted:
    return planned(setting, "auto", batches=MORE_BATCHES)


def default(setting: Setting) -> Adapted:
    """What the command line and the node plan unless they are told otherwise."""
    found = lyc.probe(
        setting.module,
        setting.probe_batches(MORE_BATCHES),
        setting.task.loss,
        preset=setting.task.preset,
        exclude=setting.task.exclude,
        algorithms=choice.AUTO,
        least=PROBE_BATCHES,
        seed=setting.seed,
    )
    return adapted(setting, plan=lyc.plan_ranks(found, size=lyc.Budget(parameters=setting.budget)))


def uniform(setting: Setting) -> Adapted:
    """LoRA of one rank everywhere that begins at the gradient."""
    plan = lyc.plan_ranks(probed(setting, "lora"), size=lyc.Rank(int(setting.size)), algorithms="lora")
    return adapted(setting, plan=plan)


METHODS = (
    Method("LoRA, gradient", (1, 4), -8, uniform, LARGE, long=(4,)),
    Method("LoRA, gradient", (1, 4), -8, uniform, SMALL),
    Method("planned", (4,), -10, lambda setting: planned(setting, "lora", start=False), LARGE),
    Method(LORA, BUDGETS, -8, lambda setting: planned(setting, "lora"), LARGE),
    Method(LORA, (1, 4), -8, lambda setting: planned(setting, "lora"), SMALL),
    Method(MORE, (1, 4, 6), -8, more, LARGE, long=(4, 6)),
    Method(MORE, (1, 4), -8, more, SMALL),
    Method("planned LoKr, gradient", (2, 4), -8, lambda setting: planned(setting, "lokr"), LARGE),
    Method("planned of all kinds", (2,), -8, lambda setting: planned(setting, KINDS), LARGE),
    Method(AUTO, (1, 4), -8, default, long=(1, 4)),
    *(
        Method(
            f"planned by {criterion}, gradient",
            (1, 4),
            -8,
            lambda setting, criterion=criterion: planned(setting, "lora", criterion=criterion),
        )
        for criterion in ("first step", "energy")
    ),
)
