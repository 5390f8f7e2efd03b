"""This project's planned networks: a probe on some batches first, then ranks, kinds and starts from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

import lycoris_ops as lyc
from lycoris_ops.ranks import choice

from ..method import MORE_BATCHES, PROBE_BATCHES, Method, Setting
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


def uniform(setting: Setting) -> Adapted:
    """LoRA of one rank everywhere that begins at the gradient."""
    plan = lyc.plan_ranks(probed(setting, "lora"), size=lyc.Rank(int(setting.size)), algorithms="lora")
    return adapted(setting, plan=plan)


def pruned(setting: Setting, *, regrow: float = 0.0) -> Adapted:
    """LoRA of twice the rank that loses half of its numbers on the way, where they matter least."""
    network = lyc.create_lycoris(
        setting.module,
        rank=2 * int(setting.size),
        preset=setting.task.preset,
        exclude=setting.task.exclude,
        seed=setting.seed,
    )
    network.apply_to().eval()
    schedule = lyc.Reallocation(
        target=setting.budget,
        begin=setting.steps // 10,
        end=setting.steps // 2,
        every=max(1, setting.steps // 20),
        regrow=regrow,
    )
    made: list[lyc.Reallocator] = []

    def after_step(optimiser: torch.optim.Optimizer, step: int) -> None:
        if not made:
            batches = list(setting.probe_batches()) if regrow else None
            made.append(
                lyc.Reallocator(network, optimiser, schedule, batches, setting.task.loss, setting.seed)
            )
        made[0].observe()
        made[0].step(step)

    return Adapted(
        module=setting.module,
        groups=lambda lr: network.parameter_groups(lr=lr),
        numbers=lambda: sum(value.numel() for value in network.parameters()),
        after_step=after_step,
    )


METHODS = (
    Method("LoRA, gradient", (1, 4), -8, uniform, long=(4,)),
    Method("planned", (4,), -10, lambda setting: planned(setting, "lora", start=False)),
    Method(LORA, BUDGETS, -8, lambda setting: planned(setting, "lora")),
    Method(AUTO, (1, 4, 6), -8, lambda setting: planned(setting, "auto", batches=MORE_BATCHES), long=(4, 6)),
    Method("planned LoKr, gradient", (2, 4), -8, lambda setting: planned(setting, "lokr")),
    Method("planned of all kinds", (2,), -8, lambda setting: planned(setting, KINDS)),
    Method("pruned", (4,), -10, pruned),
    Method("pruned and regrown", (4,), -10, lambda setting: pruned(setting, regrow=0.1)),
)
