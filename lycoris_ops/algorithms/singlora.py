"""SingLoRA: a low-rank change of a single factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..changes.forms import LowRank
from ..changes.operators import Sides
from ..maths.shapes import Extent, Shape, flat_shape
from .axes import Table
from .base import Layer
from .checks import exactly, scale

A = "singlora_A"


@dataclass(frozen=True, eq=False, kw_only=True)
class Singlora(Layer):
    """delta = alpha / r * A[:O] A[:K]^T, with A (max(O, K), r) and a weight of O outputs and K flat inputs.

    A start without effect needs the ramp of the source, which multiplies the change by min(t / T, 1) in step
    t; a layer that was trained has passed it.

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

    @property
    def proportional(self) -> bool:
        return True

    def sides(self, weight: Tensor) -> Sides:
        outputs, inputs = flat_shape(weight.shape)
        factor = self.singlora_a.to(weight.device, weight.dtype)
        by = scale(self.alpha, factor.shape[1])
        return Sides(beside=(LowRank(factor[:outputs], factor[:inputs].T, by),))
