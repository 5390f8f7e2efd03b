"""What is measured: stacks of random adapters on layers like SDXL's, and on layers of other shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lycoris_ops.maths.shapes import factorization

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


def by_eight(size: int) -> tuple[int, int]:
    return 8, size // 8


@dataclass(frozen=True)
class LayerSet:
    """The shapes of the weights that a stack is for, and how LoKr cuts their sizes."""

    layers: tuple[Shape, ...]
    split: Split = factorization


SETS = {"sdxl": LayerSet(LINEAR), "other": LayerSet(OTHER, by_eight)}


RANKS = {"lora": 16, "loha": 8, "lokr": 16}


def factors(kind: str, shape: Shape, draw: torch.Generator, split: Split = factorization) -> Factors:
    """Random tensors of a layer by suffix, whose change has the norm EFFECT; alpha equals the rank.

    A LoKr has a full w1 and a low-rank w2.
    """

    def rand(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=draw)

    rank, (out, inputs, *kernel) = RANKS[kind], shape
    found = {"alpha": torch.tensor(float(rank))}
    size = EFFECT / math.sqrt(inputs * math.prod(kernel))
    if kind == "lora":
        up = rand(out, rank, *(1 for _ in kernel)) * size / math.sqrt(rank)
        return found | {"lora_up.weight": up, "lora_down.weight": rand(rank, *shape[1:])}
    if kind == "loha":
        first = rand(out, rank) * size / rank
        columns = inputs * math.prod(kernel)
        found |= {"hada_w1_a": first, "hada_w1_b": rand(rank, columns)}
        return found | {"hada_w2_a": rand(out, rank), "hada_w2_b": rand(rank, columns)}
    (outer, k), (i, j) = split(out), split(inputs)
    found |= {"lokr_w1": rand(outer, i) * size / math.sqrt(rank), "lokr_w2_a": rand(k, rank)}
    return found | {"lokr_w2_b": rand(rank, j * math.prod(kernel))}


Stack = list[tuple[str, Factors, float]]
"""(kind, tensors by suffix, strength) of each adapter."""


@dataclass(frozen=True)
class Case:
    """A stack of adapters of these kinds."""

    name: str
    kinds: tuple[str, ...]

    def stack(self, number: int, shape: Shape, dtype: torch.dtype, split: Split = factorization) -> Stack:
        """The adapters for layer `number`, seeded; alpha stays in float32."""
        made: Stack = []
        for slot, kind in enumerate(self.kinds):
            tensors = factors(kind, shape, torch.Generator().manual_seed(1000 * number + slot), split)
            cast = {key: t if key == "alpha" else t.to(dtype) for key, t in tensors.items()}
            made.append((kind, cast, STRENGTHS[slot]))
        return made


CASES = (
    Case("LoRA r16 x 1", ("lora",)),
    Case("LoRA r16 x 8", ("lora",) * 8),
    Case("LoHa r8 x 1", ("loha",)),
    Case("LoHa r8 x 8", ("loha",) * 8),
    Case("LoKr r16 x 1", ("lokr",)),
    Case("LoKr r16 x 8", ("lokr",) * 8),
    Case("3 LoRA, 3 LoHa, 2 LoKr", ("lora",) * 3 + ("loha",) * 3 + ("lokr",) * 2),
)


def base(number: int, shape: Shape, dtype: torch.dtype) -> Tensor:
    """The random weight of layer `number`, the same in every run."""
    generator = torch.Generator().manual_seed(7 + number)
    return (torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))).to(dtype)
