"""LoRA, and LoCon, which is LoRA on convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..algebra import Shape, flat_shape, fold_core
from ..forms import LowRank
from .base import Layer, agree, dimensions, scale

if TYPE_CHECKING:
    from typing_extensions import Self

UP, DOWN, MID = "lora_up.weight", "lora_down.weight", "lora_mid.weight"


@dataclass(frozen=True, eq=False, kw_only=True)
class Lora(Layer):
    """delta = alpha / r * up @ down.

    Linear: up (O, r), down (r, I). Convolution: up (O, r, 1, ...), down (r, I, *kernel).
    Tucker: up (O, r, 1, ...), down (r, I, 1, ...), mid (r, r, *kernel), where
    delta[p, q, ...] = alpha / r * sum_mn up[p, m] mid[m, n, ...] down[n, q].

    Source: Hu et al., "LoRA" (2106.09685), eq. 3; key names by kohya-ss; convolutions and Tucker by
    Yeh et al., "Navigating Text-To-Image Customization" (2309.14859).
    """

    algorithm: ClassVar[str] = "lora"
    variants: ClassVar[tuple[frozenset[str], ...]] = (
        frozenset({UP, DOWN}),
        frozenset({UP, DOWN, MID}),
    )

    lora_up: Tensor
    lora_down: Tensor
    lora_mid: Tensor | None = None

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Shape:
        up, down = dimensions(shapes, UP), dimensions(shapes, DOWN)
        kernel = down[2:]
        if MID in shapes:
            mid = dimensions(shapes, MID, 3)
            agree("ranks", (UP, up[1]), (MID, mid[0]))
            agree("ranks", (MID, mid[1]), (DOWN, down[0]))
            agree("kernel sizes", (DOWN, math.prod(down[2:])), ("a Tucker factor", 1))
            kernel = mid[2:]
        else:
            agree("ranks", (UP, up[1]), (DOWN, down[0]))
        agree("kernel sizes", (UP, math.prod(up[2:])), ("an output factor", 1))
        return (up[0], down[1], *kernel)

    @classmethod
    def rank_of(cls, shapes: Mapping[str, Shape]) -> int:
        return shapes[DOWN][0]

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Self:
        """down uniform in +-1 / sqrt(K) (Kaiming, a = sqrt(5)), up zero."""
        generator = torch.Generator().manual_seed(seed)
        down = torch.empty(rank, *shape[1:])
        bound = 1.0 / math.sqrt(flat_shape(shape)[1])
        down.uniform_(-bound, bound, generator=generator)
        up = torch.zeros(shape[0], rank, *(1 for _ in shape[2:]))
        return cls(lora_up=up, lora_down=down, alpha=alpha)

    def form(self) -> LowRank:
        down = self.lora_down
        if self.lora_mid is not None:
            down = fold_core(self.lora_mid, down)
        return LowRank(
            up=self.lora_up.flatten(1), down=down.flatten(1), scale=scale(self.alpha, down.shape[0])
        )
