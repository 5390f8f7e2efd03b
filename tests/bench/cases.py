"""What is measured: stacks of random adapters on layers like SDXL's, and on layers of other shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]
Factors = dict[str, Tensor]

LINEAR: tuple[Shape, ...] = (
    *[(1280, 1280)] * 10,
    *[(10240, 1280)] * 2,
    *[(1280, 5120)] * 2,
    *[(640, 640)] * 8,
    *[(5120, 640)] * 2,
    *[(640, 2560)] * 2,
    *[(1280, 2048)] * 3,
    (640, 2048),
    (1280, 768),
)
"""31 linear layers with the widths of SDXL's UNet, 79 M parameters."""

OTHER: tuple[Shape, ...] = (
    *[(320, 320)] * 6,
    *[(640, 640)] * 4,
    *[(320, 1280)] * 2,
    *[(1280, 320)] * 2,
    (2560, 320),
    (320, 2560),
    *[(320, 320, 3, 3)] * 2,
    (640, 320, 3, 3),
    (640, 640, 3, 3),
)
"""Small squares, wide and tall layers, and 3x3 convolutions: 20 layers, 14 M parameters."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STRENGTHS = (1.0, 0.8, -0.5, 0.6, 0.7, 0.35, 1.2, 0.9)


EFFECT = 0.02
"""The norm of one adapter's change at strength 1, over that of its weight: as in trained files."""


Split = Callable[[int], tuple[int, int]]
"""How LoKr cuts a size in two: the part of w1 and the part of w2, whose product is the size."""


def balanced(size: int) -> tuple[int, int]:
    """The two factors of a size that are nearest to each other, the smaller one first."""
    small = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return small, size // small


def by_eight(size: int) -> tuple[int, int]:
    return 8, size // 8


@dataclass(frozen=True)
class LayerSet:
    """The shapes of the weights that a stack is for, and how LoKr cuts their sizes."""

    layers: tuple[Shape, ...]
    split: Split = balanced


SETS = {"sdxl": LayerSet(LINEAR), "other": LayerSet(OTHER, by_eight)}


def rand(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator)


def lora(shape: Shape, rank: int, generator: torch.Generator) -> Factors:
    """Random tensors of a LoRA layer by suffix, whose change has the norm EFFECT when alpha is the rank."""
    out, *rest = shape
    up = rand(out, rank, *(1 for _ in shape[2:]), generator=generator)
    down = rand(rank, *rest, generator=generator)
    return {"lora_up.weight": up * (EFFECT / math.sqrt(rank * math.prod(rest))), "lora_down.weight": down}


def loha(shape: Shape, rank: int, generator: torch.Generator) -> Factors:
    """Random tensors of a LoHa layer by suffix, scaled as those of `lora`."""
    out, columns = shape[0], math.prod(shape[1:])
    size = EFFECT / (rank * math.sqrt(columns))
    return {
        "hada_w1_a": rand(out, rank, generator=generator) * size,
        "hada_w1_b": rand(rank, columns, generator=generator),
        "hada_w2_a": rand(out, rank, generator=generator),
        "hada_w2_b": rand(rank, columns, generator=generator),
    }


def lokr(shape: Shape, rank: int, generator: torch.Generator, split: Split = balanced) -> Factors:
    """Random tensors of a LoKr layer with a full w1 and a low-rank w2, scaled as those of `lora`."""
    (outer, k), (i, j), kernel = split(shape[0]), split(shape[1]), math.prod(shape[2:])
    size = EFFECT / math.sqrt(rank * shape[1] * kernel)
    return {
        "lokr_w1": rand(outer, i, generator=generator) * size,
        "lokr_w2_a": rand(k, rank, generator=generator),
        "lokr_w2_b": rand(rank, j * kernel, generator=generator),
    }


MAKE: dict[str, Callable[[Shape, int, torch.Generator], Factors]] = {"lora": lora, "loha": loha}


@dataclass(frozen=True)
class Case:
    """A stack: (kind, rank) of each of its adapters."""

    name: str
    adapters: tuple[tuple[str, int], ...]

    def factors(
        self, number: int, shape: Shape, dtype: torch.dtype, split: Split = balanced
    ) -> list[tuple[str, Factors, float]]:
        """(kind, tensors, strength) of each adapter for layer `number`, seeded; alpha equals the rank."""
        made: list[tuple[str, Factors, float]] = []
        for slot, (kind, rank) in enumerate(self.adapters):
            generator = torch.Generator().manual_seed(1000 * number + slot)
            if kind == "lokr":
                plain = lokr(shape, rank, generator, split)
            else:
                plain = MAKE[kind](shape, rank, generator)
            tensors = {key: t.to(dtype) for key, t in plain.items()}
            tensors["alpha"] = torch.tensor(float(rank))
            made.append((kind, tensors, STRENGTHS[slot]))
        return made


CASES = (
    Case("LoRA r16 x 1", (("lora", 16),)),
    Case("LoRA r16 x 8", (("lora", 16),) * 8),
    Case("LoHa r8 x 1", (("loha", 8),)),
    Case("LoHa r8 x 8", (("loha", 8),) * 8),
    Case("LoKr r16 x 1", (("lokr", 16),)),
    Case("LoKr r16 x 8", (("lokr", 16),) * 8),
    Case("3 LoRA, 3 LoHa, 2 LoKr", (("lora", 16),) * 3 + (("loha", 8),) * 3 + (("lokr", 16),) * 2),
)


def base(number: int, shape: Shape, dtype: torch.dtype) -> Tensor:
    """The random weight of layer `number`, the same in every run."""
    generator = torch.Generator().manual_seed(7 + number)
    return (torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))).to(dtype)
