"""This project's planned networks: a probe on some batches first, then ranks, kinds and starts from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import lycoris_ops as lyc
from lycoris_ops.ranks import choice

from ..method import LARGE, MORE_BATCHES, PROBE_BATCHES, SMALL, Method, Setting
from ..training import Adapted
from .ours import adapted

KINDS = ("lora", "lokr")
BUDGETS = (0.25, 1, 4, 6)
"""Up to about 0.4 of the largest uniform LoRA, which is of rank 16."""
LORA = "planned by roots, gradient"
AUTO = f"auto, {MORE_BATCHES} batches"
"""The method that plans whatever "auto" chooses, and looks at more batches than the others."""


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
) -> Adapted:
    """A plan within the budget; with `start` its layers begin at the gradient."""
    found = probed(setting, choice.AUTO if algorithms == "auto" else algorithms, batches)
    size = lyc.Budget(parameters=setting.budget)
    plan = lyc.plan_ranks(found, size=size, algorithms=algorithms)
    return adapted(setting, plan=plan if start else replace(plan, probe=None))


def auto(setting: Setting) -> Adapted:
    return planned(setting, "auto", batches=MORE_BATCHES)


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
    Method(AUTO, (1, 4, 6), -8, auto, LARGE, long=(4, 6)),
    Method(AUTO, (1, 4), -8, auto, SMALL, long=(1, 4)),
    Method("planned LoKr, gradient", (2, 4), -8, lambda setting: planned(setting, "lokr"), LARGE),
    Method("planned of all kinds", (2,), -8, lambda setting: planned(setting, KINDS), LARGE),
)
