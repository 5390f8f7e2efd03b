"""This project's own methods with the rate, or the kind too, found by a race before the training.

Each has one rate, in multiples of that of the race. The race is part of the start: all of it is counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import lycoris_ops as lyc

from ..method import SMALL, Method, Setting
from ..results import SEARCHED
from ..task import Batch, fixed
from ..training import WARM_UP, Adapted
from . import ours

SHARES = {"short": 1.0, "long": 0.4}
"""What a race may cost, as a share of the training after it."""


def raced(search: str, setting: Setting, **options: Any) -> Adapted:
    """A network whose rate, or whose kind and rate, a race has found, as `ours.adapted`.

    It is judged by the split on which rates are found for all methods.
    """
    task, steps = setting.task, setting.steps
    network = lyc.create_lycoris(
        setting.module, seed=setting.seed, preset=task.preset, exclude=task.exclude, **options
    )
    length = next(length for length, count in task.steps.items() if count == steps)
    given = lyc.TrainOptions(
        steps=steps,
        schedule="cosine",
        warmup=WARM_UP,
        clip_norm=None,
        search=search,
        search_share=SHARES[length],
        seed=setting.seed,
    )

    def batches(epoch: int) -> Iterator[Batch]:
        return itertools.islice(task.batches(setting.seed, "train"), steps)

    found = lyc.search_network(
        network, batches, task.loss, given, steps=steps, validation=fixed(task, "tune")
    )
    print(found, flush=True)
    # Where the steps are too few for a race, as without one.
    rate = found.options.lr or lyc.optimisers()[given.optimiser].lr or 1.0
    best = found.network.apply_to().eval()
    return Adapted(
        module=setting.module,
        groups=lambda times: best.parameter_groups(lr=times * rate),
        numbers=lambda: sum(value.numel() for value in best.parameters()),
    )


def of_kind(search: str, kind: Any, setting: Setting) -> Adapted:
    return kind(setting, partial(raced, search))


METHODS = (
    Method("search all", (1, 4, 16), SEARCHED, partial(of_kind, "all", ours.lora), long=(4, 16)),
    Method("LoRA, search rate", (4, 16), SEARCHED, partial(of_kind, "rate", ours.lora), long=(4, 16)),
    Method("LoKr, search rate", (4,), SEARCHED, partial(of_kind, "rate", ours.lokr), long=(4,)),
    Method("DoRA, search rate", (4,), SEARCHED, partial(of_kind, "rate", ours.dora)),
    Method("OFT, search rate", (4,), SEARCHED, partial(of_kind, "rate", ours.oft), SMALL),
)
