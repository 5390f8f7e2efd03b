"""What is measured: stacks of random adapters on a layer set like SDXL's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, int]
Factors = dict[str, Tensor]

LAYERS: tuple[Shape, ...] = (
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

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STRENGTHS = (1.0, 0.8, -0.5, 0.6, 0.7, 0.35, 1.2, 0.9)


EFFECT = 0.02
"""The norm of one adapter's change at strength 1 against that of its weight: what trained files have."""


def rand(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator)


def lora(shape: Shape, rank: int, generator: torch.Generator) -> Factors:
    up, down = rand(shape[0], rank, generator), rand(rank, shape[1], generator)
    return {"lora_up.weight": up * (EFFECT / math.sqrt(rank * shape[1])), "lora_down.weight": down}


def loha(shape: Shape, rank: int, generator: torch.Generator) -> Factors:
    size = EFFECT / (rank * math.sqrt(shape[1]))
    return {
        "hada_w1_a": rand(shape[0], rank, generator) * size,
        "hada_w1_b": rand(rank, shape[1], generator),
        "hada_w2_a": rand(shape[0], rank, generator),
        "hada_w2_b": rand(rank, shape[1], generator),
    }


def balanced(size: int) -> tuple[int, int]:
    small = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return small, size // small


def lokr(shape: Shape, rank: int, generator: torch.Generator) -> Factors:
    (outer, k), (i, j) = balanced(shape[0]), balanced(shape[1])
    return {
        "lokr_w1": rand(outer, i, generator) * (EFFECT / math.sqrt(rank * shape[1])),
        "lokr_w2_a": rand(k, rank, generator),
        "lokr_w2_b": rand(rank, j, generator),
    }


MAKE: dict[str, Callable[[Shape, int, torch.Generator], Factors]] = {"lora": lora, "loha": loha, "lokr": lokr}


@dataclass(frozen=True)
class Case:
    """A stack: (kind, rank) of each of its adapters."""

    name: str
    adapters: tuple[tuple[str, int], ...]

    def factors(self, number: int, shape: Shape, dtype: torch.dtype) -> list[tuple[str, Factors, float]]:
        """(kind, tensors, strength) of each adapter for layer `number`, seeded; alpha equals the rank."""
        made: list[tuple[str, Factors, float]] = []
        for slot, (kind, rank) in enumerate(self.adapters):
            generator = torch.Generator().manual_seed(1000 * number + slot)
            tensors = {key: t.to(dtype) for key, t in MAKE[kind](shape, rank, generator).items()}
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
    generator = torch.Generator().manual_seed(7 + number)
    return (torch.randn(shape, generator=generator) / math.sqrt(shape[1])).to(dtype)
