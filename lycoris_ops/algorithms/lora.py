"""LoRA, and LoCon, which is LoRA on convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..changes.forms import Additive, LowRank
from ..errors import LayerError
from ..maths.shapes import Extent, Shape, flat_shape, shown
from ..maths.tensors import fold_core
from .base import agree, column, dimensions, folded, matrix, scale, vector
from .factored import Factored

if TYPE_CHECKING:
    from typing_extensions import Self

UP, DOWN, MID = "lora_up.weight", "lora_down.weight", "lora_mid.weight"
EMBEDDING_UP, EMBEDDING_DOWN = "lora_embedding_B", "lora_embedding_A"
BIAS = "lora_B.bias"
RESHAPE = "reshape_weight"
ENLARGED = 1 << 26
"""The most values of a weight that a layer enlarges (256 MB in float32). The layers that control models
enlarge are their first, whose weights have less than a million."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Lora(Factored):
    """delta = alpha / r * up @ down.

    Linear: up (O, r), down (r, I). Convolution: up (O, r, 1, ...), down (r, I, *kernel).
    Tucker: up (O, r, 1, ...), down (r, I, 1, ...), mid (r, r, *kernel), where
    delta[p, q, ...] = alpha / r * sum_mn up[p, m] mid[m, n, ...] down[n, q].
    PEFT's embedding, of a weight (V, D): lora_embedding_B (D, r), lora_embedding_A (r, V), where delta is
    the transposed product. `lora_B.bias` (O,) is added to the bias, scaled by alpha / r as well.
    `reshape_weight` holds the shape to which the weight is enlarged with zeros before delta is added
    (control models with more input channels).

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
    numbers: ClassVar[frozenset[str]] = Factored.numbers | {RESHAPE}

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
            up, down = matrix(shapes, EMBEDDING_UP), matrix(shapes, EMBEDDING_DOWN)
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
        extent = super().shape(shapes)
        if RESHAPE in shapes:
            check_enlargement(extent)
        return extent

    @classmethod
    def work(cls, shapes: Mapping[str, Shape]) -> int:
        return folded(shapes, MID, DOWN)

    def check_values(self) -> None:
        super().check_values()
        if self.reshape_weight is None:
            return
        check_enlargement(self.extent)
        larger = self.enlarged()
        if larger is not None and not self.suits(self.shapes, larger):
            raise LayerError(
                f"{RESHAPE} is not the shape of the layer", got=shown(larger), expected=shown(self.extent)
            )

    @classmethod
    def bias_shape(
        cls, shapes: Mapping[str, Shape], options: Mapping[str, Any] | None = None
    ) -> Shape | None:
        added = super().bias_shape(shapes, options)
        if BIAS not in shapes:
            return added
        own = (vector(shapes, BIAS),)
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
            up, down = self.lora_embedding_a.flatten(1).T, self.lora_embedding_b.flatten(1).T
        else:
            assert self.lora_up is not None and self.lora_down is not None
            up, down = self.lora_up.flatten(1), self.lora_down
            if self.lora_mid is not None:
                down = fold_core(self.lora_mid, down)
        return LowRank(up=up, down=down.flatten(1), scale=scale(self.alpha, down.shape[0]))

    def factor_axes(self) -> Mapping[str, int]:
        return {"lora_up": 0, "lora_embedding_a": 1}

    @classmethod
    def biases(cls) -> tuple[str, ...]:
        return (*super().biases(), "lora_b_bias")

    def bias_additive(self) -> tuple[Additive, ...]:
        added = super().bias_additive() or ()
        if self.lora_b_bias is None:
            return added
        # A low-rank form keeps alpha / r apart, so that it is not rounded to the dtype of the bias.
        one = torch.ones(1, 1, dtype=self.lora_b_bias.dtype, device=self.lora_b_bias.device)
        factor = scale(self.alpha, self.rank_of(self.shapes))
        return (LowRank(column(self.lora_b_bias), one, factor), *added)

    def enlarged(self) -> Shape | None:
        if self.reshape_weight is None:
            return None
        return tuple(int(n) for n in self.reshape_weight.to(torch.int64))


def check_enlargement(extent: Extent) -> None:
    """Raise LayerError for a weight that would be enlarged to more than ENLARGED values."""
    values = math.prod(size or 1 for size in extent)
    if values > ENLARGED:
        raise LayerError(
            f"{RESHAPE} enlarges a weight too far",
            got=f"{values} values, {shown(extent)}",
            expected=f"at most {ENLARGED}",
        )
