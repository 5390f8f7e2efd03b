"""SingLoRA: a low-rank change of a single factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..changes.forms import LowRank
from ..changes.operators import Sides
from ..maths.shapes import Extent, Shape, flat_shape
from .axes import Table
from .base import kaiming
from .checks import exactly, scale
from .training import Trained

A = "singlora_A"
START = 1e-5
"""The size of the factor at the start, as a multiple of that of LoRA's down."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Singlora(Trained):
    """delta = alpha / r * A[:O] A[:K]^T, with A (max(O, K), r) and a weight of O outputs and K flat inputs.

    In a square weight the change is symmetric, and none of its eigenvalues is negative.

    Source: Bensaid et al., "SingLoRA" (2507.05566), eq. 3, and section 4.2 for weights that are not square.
    """

    algorithm: ClassVar[str] = "singlora"
    in_comfy: ClassVar[bool] = False
    table: ClassVar[Table] = Table({A: "n r, twice"}, alpha="scales")

    singlora_a: Tensor

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Extent:
        exactly(shapes, A, 2)
        # Only the larger side is known.
        return (None, None)

    @classmethod
    def suits(cls, shapes: Mapping[str, Shape], weight: Sequence[int]) -> bool:
        return len(weight) > 1 and max(flat_shape(weight)) == shapes[A][0]

    @classmethod
    def made_for(cls, shapes: Mapping[str, Shape]) -> str:
        return f"{super().made_for(shapes)}, the larger of both {shapes[A][0]}"

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Singlora:
        """A uniform in +-START / sqrt(n), n = max(O, K): no value of the change is above alpha START^2 / n,
        which float32 weights round away. Optimisers such as Adam move so small a factor at full rate.

        The source multiplies the change by min(t / T, 1) in step t in place of a small start. Four layers of
        2,560 trained numbers after 400 steps of AdamW at 3e-3 (means of three seeds) leave of the held-out
        loss 0.22 from this start, 0.22 with the ramp and 0.03 with LoRA where the wanted change has rank 4;
        0.39, 0.40 and 0.41 where it has full rank; 0.001, 0.001 and 0.04 where it is of this kind.
        """
        generator = torch.Generator().manual_seed(seed)
        down = kaiming((rank, max(flat_shape(shape))), generator)
        return cls(singlora_a=START * down.T.contiguous(), alpha=alpha)

    def sides(self, weight: Tensor) -> Sides:
        outputs, inputs = flat_shape(weight.shape)
        factor = self.singlora_a.to(weight.device, weight.dtype)
        by = scale(self.alpha, factor.shape[1])
        return Sides(beside=(LowRank(factor[:outputs], factor[:inputs].T, by),))
