"""OFTv2: a block-diagonal rotation of a layer's inputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..changes.operators import BlockDiagonal, Sides
from ..errors import LayerError
from ..maths.rotations import series, skew_symmetric
from ..maths.shapes import Extent, Shape, flat_shape
from .axes import ALPHA, BIASES, Table
from .base import block_of, option
from .checks import MOST_SCALE, check_work, exactly
from .oft import bounded, turned
from .training import Trained

R, SCALED = "oft_R.weight", "oft_R.scaled_oft"
TERMS = 5
"""PEFT's default number of terms of the Cayley-Neumann series."""
MOST_TERMS = 100
"""The most terms of the series. Where it converges at a useful speed, fewer terms give all digits of float32:
75 for blocks of norm 0.8."""


@dataclass(frozen=True, eq=False, kw_only=True)
class OftV2(Trained):
    """W' = W R^T, R block-diagonal over the flattened inputs (I * prod(kernel)).

    oft_R.weight (n, b * (b - 1) / 2) holds the upper triangles of the skew-symmetric blocks Q, row by
    row. With n = 1 the one block is used for all runs of b inputs.

    `terms` is the number of terms of the Cayley-Neumann series, R = I + 2 Q + 2 Q^2 + ... +
    `last` * Q^(terms - 1). `last` is 1 from PEFT 0.18 on, and 2 before it. With `last` 1 PEFT computes the
    same for 3 terms as for 4, and I + 2 Q for 2 terms. `terms` 0 stands for PEFT's exact
    R = (I - Q) (I + Q)^-1, the inverse of what the series converges to.

    Where oft_R.scaled_oft is there (OneTrainer writes it), Q is divided by 2 sqrt(b - 1). `constraint`
    (PEFT's coft) bounds the norm of each Q by constraint / sqrt(n).

    Source: Qiu et al., "Orthogonal Finetuning Made Scalable" (2506.19847), eq. 5 and 8; layout and
    options by PEFT.
    """

    algorithm: ClassVar[str] = "oftv2"
    in_comfy: ClassVar[bool] = False
    table: ClassVar[Table] = Table({R: "n t"}, alpha=None, extras={**BIASES, SCALED: "(), number"})

    oft_r: Tensor
    oft_r_scaled_oft: Tensor | None = None
    terms: int = option(
        TERMS,
        lambda value: type(value) is int and 0 <= value <= MOST_TERMS,
        f"a whole number up to {MOST_TERMS}, 0 for the exact rotation",
    )
    last: int = option(1, lambda value: type(value) is int and value in (1, 2), "1 or 2")
    constraint: float | None = option(
        None,
        lambda value: value is None or (isinstance(value, int | float) and 0 < value <= MOST_SCALE),
        "a number above 0, or None",
    )

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Extent:
        count, triangle = exactly(shapes, R, 2)
        size = _block(triangle)
        if size * (size - 1) != 2 * triangle:
            raise LayerError("E-oftv2-blocks-not-triangles", got=str(list(shapes[R])))
        return (None, None if count == 1 else count * size)

    @classmethod
    def suits(cls, shapes: Mapping[str, Shape], weight: Sequence[int]) -> bool:
        return super().suits(shapes, weight) and flat_shape(weight)[1] % cls.rank_of(shapes) == 0

    def check_fit(self, shape: Sequence[int]) -> None:
        super().check_fit(shape)
        # A shared block is repeated for each run of inputs, and only the weight tells how many there are.
        size = self.rank_of(self.shapes)
        check_work(self.algorithm, flat_shape(shape)[1] * size, math.prod(shape), self.oft_r.numel())

    @classmethod
    def is_told(cls, names: Collection[str]) -> bool:
        """Only with alpha, which this library writes. PEFT's files need a configuration for the series."""
        return ALPHA in names

    @classmethod
    def made_for(cls, shapes: Mapping[str, Shape]) -> str:
        shared = f", the inputs a multiple of {cls.rank_of(shapes)}" if shapes[R][0] == 1 else ""
        return super().made_for(shapes) + shared

    @classmethod
    def rank_of(cls, shapes: Mapping[str, Shape]) -> int:
        """The size of a block."""
        return _block(shapes[R][1])

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> OftV2:
        """Zero blocks of the largest size up to `rank` that divides the inputs; alpha has no meaning."""
        size, count = block_of(flat_shape(shape)[1], rank, "inputs")
        return cls(oft_r=torch.zeros(count, size * (size - 1) // 2))

    def sides(self, weight: Tensor) -> Sides:
        skew = self._skew(weight)
        size = skew.shape[-1]
        count = flat_shape(weight.shape)[1] // size
        return Sides(inputs=BlockDiagonal(self._turned(skew).expand(count, size, size)).transposed())

    @property
    def rows_apart(self) -> bool:
        return True

    def _skew(self, weight: Tensor) -> Tensor:
        """Q (n, b, b), scaled and bounded."""
        values = self.oft_r.to(weight.device, weight.dtype)
        size = _block(values.shape[1])
        skew = skew_symmetric(values, size)
        if self.oft_r_scaled_oft is not None:
            skew = skew / (2 * math.sqrt(max(1, size - 1)))
        if self.constraint is not None:
            skew = bounded(skew, self.constraint / math.sqrt(len(skew)), 1, 2)
        return skew

    def _turned(self, skew: Tensor) -> Tensor:
        """R - 1 of the rotation R of each block."""
        if self.terms == 0:
            return turned(skew, -1.0)
        factors = [2.0] * (self.terms - 1)
        if self.last == 1 and self.terms > 2:
            # With 3 terms PEFT adds the term of Q^3 as well.
            factors = [*[2.0] * (max(4, self.terms) - 2), 1.0]
        return series(skew, factors)


def _block(triangle: int) -> int:
    """The largest b with b * (b - 1) / 2 <= triangle."""
    return (1 + math.isqrt(1 + 8 * triangle)) // 2
