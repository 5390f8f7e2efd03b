"""LoRA, and LoCon, which is LoRA on convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..changes.forms import LowRank
from ..errors import LayerError
from ..maths.tensors import Extent, Shape, flat_shape, fold_core
from .base import Layer, agree, dimensions, scale, shapes_of, show
from .factored import Factored
from .full import Full

if TYPE_CHECKING:
    from typing_extensions import Self

UP, DOWN, MID = "lora_up.weight", "lora_down.weight", "lora_mid.weight"
EMBEDDING_UP, EMBEDDING_DOWN = "lora_embedding_B", "lora_embedding_A"
BIAS = "lora_B.bias"
RESHAPE = "reshape_weight"


@dataclass(frozen=True, eq=False, kw_only=True)
class Lora(Factored):
    """delta = alpha / r * up @ down.

    Linear: up (O, r), down (r, I). Convolution: up (O, r, 1, ...), down (r, I, *kernel).
    Tucker: up (O, r, 1, ...), down (r, I, 1, ...), mid (r, r, *kernel), where
    delta[p, q, ...] = alpha / r * sum_mn up[p, m] mid[m, n, ...] down[n, q].
    Embedding (V, D) of PEFT: lora_embedding_B (D, r), lora_embedding_A (r, V), the product transposed.
    `lora_B.bias` (O,) is added to the bias, scaled like the rest. `reshape_weight` holds the shape to
    which the weight is enlarged with zeros before (control models with more input channels).

    Source: Hu et al., "LoRA" (2106.09685), eq. 3; key names by kohya-ss; convolutions and Tucker by
    Yeh et al., "Navigating Text-To-Image Customization" (2309.14859).
    """

    algorithm: ClassVar[str] = "lora"
    variants: ClassVar[tuple[frozenset[str], ...]] = (
        frozenset({UP, DOWN}),
        frozenset({UP, DOWN, MID}),
        frozenset({EMBEDDING_UP, EMBEDDING_DOWN}),
    )
    extras: ClassVar[frozenset[str]] = Factored.extras | {BIAS, RESHAPE}

    lora_up: Tensor | None = None
    lora_down: Tensor | None = None
    lora_mid: Tensor | None = None
    lora_embedding_b: Tensor | None = None
    lora_embedding_a: Tensor | None = None
    lora_b_bias: Tensor | None = None
    reshape_weight: Tensor | None = None

    @classmethod
    def plain_shape(cls, shapes: Mapping[str, Shape]) -> Shape:
        if EMBEDDING_UP in shapes:
            up, down = dimensions(shapes, EMBEDDING_UP), dimensions(shapes, EMBEDDING_DOWN)
            agree("ranks", (EMBEDDING_UP, up[1]), (EMBEDDING_DOWN, down[0]))
            return (down[1], up[0])
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
    def shape(cls, shapes: Mapping[str, Shape]) -> Extent:
        if RESHAPE in shapes and len(found := dimensions(shapes, RESHAPE, 1)) > 1:
            raise LayerError(f"{RESHAPE} is not a shape", got=str(list(found)), expected="one dimension")
        return super().shape(shapes)

    def check_values(self) -> None:
        super().check_values()
        larger = self.enlarged()
        if larger is not None and not self.suits(shapes_of(self.dump()), larger):
            raise LayerError(
                f"{RESHAPE} is not the shape of the layer", got=show(larger), expected=show(self.extent)
            )

    @classmethod
    def bias_shape(
        cls, shapes: Mapping[str, Shape], options: Mapping[str, Any] | None = None
    ) -> Shape | None:
        added = super().bias_shape(shapes, options)
        if BIAS not in shapes:
            return added
        own = (math.prod(shapes[BIAS]),)
        if added is not None:
            agree("sizes", (BIAS, own[0]), ("diff_b", added[0]))
        return own

    @classmethod
    def rank_of(cls, shapes: Mapping[str, Shape]) -> int:
        return shapes[DOWN if DOWN in shapes else EMBEDDING_DOWN][0]

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Self:
        """down uniform in +-1 / sqrt(K) (Kaiming, a = sqrt(5)), up zero."""
        generator = torch.Generator().manual_seed(seed)
        down = torch.empty(rank, *shape[1:])
        bound = 1.0 / math.sqrt(flat_shape(shape)[1])
        down.uniform_(-bound, bound, generator=generator)
        up = torch.zeros(shape[0], rank, *(1 for _ in shape[2:]))
        return cls(lora_up=up, lora_down=down, alpha=alpha)

    def product(self) -> LowRank:
        if self.lora_embedding_a is not None and self.lora_embedding_b is not None:
            up, down = self.lora_embedding_a.T, self.lora_embedding_b.T
        else:
            assert self.lora_up is not None and self.lora_down is not None
            up, down = self.lora_up.flatten(1), self.lora_down
            if self.lora_mid is not None:
                down = fold_core(self.lora_mid, down)
        return LowRank(up=up, down=down.flatten(1), scale=scale(self.alpha, down.shape[0]))

    def cut(self, start: int, stop: int) -> Lora:
        if self.lora_up is not None:
            return replace(self, lora_up=self.lora_up[start:stop], lora_b_bias=None)
        assert self.lora_embedding_a is not None
        return replace(self, lora_embedding_a=self.lora_embedding_a[:, start:stop], lora_b_bias=None)

    def bias_layer(self) -> Layer | None:
        if self.lora_b_bias is None:
            return super().bias_layer()
        rank = self.rank_of(shapes_of(self.dump()))
        own = scale(self.alpha, rank) * self.lora_b_bias.flatten().to(torch.float32)
        return Full(diff=own if self.diff_b is None else own + self.diff_b.flatten())

    def enlarged(self) -> Shape | None:
        if self.reshape_weight is None:
            return None
        return tuple(int(n) for n in self.reshape_weight.to(torch.int64))
