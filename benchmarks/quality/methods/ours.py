"""This project's own methods: networks of one algorithm, and planned ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import lycoris_ops as lyc
from lycoris_ops.maths.shapes import Shape, factorization

from ..method import LARGE, SMALL, Method, Setting
from ..training import Adapted


def adapted(setting: Setting, **options: Any) -> Adapted:
    """A network for the task's sites, at work. `options` are those of `create_lycoris`."""
    if "plan" not in options:
        options |= {"preset": setting.task.preset, "exclude": setting.task.exclude}
    network = lyc.create_lycoris(setting.module, seed=setting.seed, **options).apply_to().eval()
    return Adapted(
        module=setting.module,
        groups=lambda lr: network.parameter_groups(lr=lr),
        numbers=lambda: sum(value.numel() for value in network.parameters()),
    )


Made = Callable[..., Adapted]
"""What makes a network of options, as `adapted` does."""


def lora(setting: Setting, made: Made = adapted) -> Adapted:
    return made(setting, rank=int(setting.size))


def dora(setting: Setting, made: Made = adapted) -> Adapted:
    return made(setting, rank=int(setting.size), dora="output")


def loha(setting: Setting, made: Made = adapted) -> Adapted:
    """LoHa of a rank holds twice as many numbers as LoRA."""
    return made(setting, algorithm="loha", rank=int(setting.size / 2))


def lokr(setting: Setting, made: Made = adapted) -> Adapted:
    """LoKr of two full factors, with the factor whose numbers are nearest to the budget."""
    shapes = [site.shape for site in setting.sites.values()]
    # One that divides some layer: others would only stand for a smaller one.
    factors = [n for n in range(2, 33) if any(size % n == 0 for shape in shapes for size in shape[:2])]
    factor = min(factors, key=lambda factor: abs(math.log(lokr_numbers(shapes, factor) / setting.budget)))
    # A rank that no layer falls short of: the second factor is full then.
    return made(setting, algorithm="lokr", rank=2**20, factor=factor)


def lokr_numbers(shapes: Sequence[Shape], factor: int) -> int:
    """The numbers of LoKr of two full factors on weights of these shapes."""
    total = 0
    for shape in shapes:
        rows, columns = factorization(shape[0], factor), factorization(shape[1], factor)
        total += rows[0] * columns[0] + rows[1] * columns[1] * math.prod(shape[2:])
    return total


def oft(setting: Setting, made: Made = adapted) -> Adapted:
    """OFT of the size of block whose numbers are nearest to the budget."""
    rows = [site.shape[0] for site in setting.sites.values()]
    sizes = range(2, max(rows) + 1)
    size = min(sizes, key=lambda size: abs(math.log(oft_numbers(rows, size) / setting.budget)))
    return made(setting, algorithm="oft", rank=size)


def oft_numbers(rows: Sequence[int], size: int) -> int:
    """The numbers of OFT with square blocks of at most this size on layers of so many outputs."""
    return sum(count * max(n for n in range(1, size + 1) if count % n == 0) for count in rows)


METHODS = (
    Method("LoRA", (1, 4, 16), -10, lora, LARGE, long=(4, 16)),
    Method("LoRA", (1, 4, 16), -8, lora, SMALL, long=(4,)),
    Method("DoRA", (4,), -10, dora),
    Method("LoHa", (4,), -8, loha, LARGE),
    Method("LoKr", (1, 4), -8, lokr, long=(4,)),
    Method("OFT", (4,), -8, oft, SMALL),
)
