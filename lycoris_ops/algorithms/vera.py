"""VeRA: two random factors that all layers share, scaled by two vectors of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..changes.forms import LowRank
from ..changes.operators import Sides
from ..errors import LayerError, UnsuitedError
from ..maths.shapes import Extent, Shape
from ..maths.tensors import compute_dtype
from .axes import Table, field_of
from .base import Sharing, column
from .lora import Lora
from .training import Trained

LAMBDA_B, LAMBDA_D, B, A = "vera_lambda_b", "vera_lambda_d", "vera_B", "vera_A"
START = 0.1
"""The value of each d at the start, which PEFT takes too."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Vera(Trained, Sharing):
    """delta = diag(b) B[:O] diag(d) A[:, :I], for a linear layer.

    vera_lambda_b holds b (O,), vera_lambda_d d (r,). vera_B (n, r) and vera_A (r, m) are random; n and m are
    the most outputs and inputs of a layer.

    Source: Kopiczko et al., "VeRA" (2310.11454), eq. 2; layout by PEFT.
    """

    algorithm: ClassVar[str] = "vera"
    in_comfy: ClassVar[bool] = False
    table: ClassVar[Table] = Table(
        {LAMBDA_B: "<O>", B: "n r, shared", LAMBDA_D: "<r>", A: "r m, shared"}, alpha=None
    )
    # In the source the rate is 4e-3 where that of LoRA is 4e-4 (table 9).
    fresh_rate: ClassVar[float] = 10.0

    vera_lambda_b: Tensor
    vera_lambda_d: Tensor
    vera_b: Tensor
    vera_a: Tensor

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Extent:
        extent = super().shape(shapes)
        if shapes[B][0] < (extent[0] or 0):
            raise LayerError("E-vera-b-too-few-rows", b=B, got=str(shapes[B][0]), expected=str(extent[0]))
        return extent

    @classmethod
    def suits(cls, shapes: Mapping[str, Shape], weight: Sequence[int]) -> bool:
        return len(weight) == 2 and super().suits(shapes, weight) and weight[1] <= shapes[A][1]

    @classmethod
    def made_for(cls, shapes: Mapping[str, Shape]) -> str:
        return f"{super().made_for(shapes)}, at most {shapes[A][1]} inputs"

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Vera:
        """b = 0 and d = 0.1. A and then B are uniform in +-sqrt(6 / fan in), as PEFT draws them from a
        `projection_prng_key`; alpha has no meaning."""
        layer, generator = cls.undrawn(shape, rank), torch.Generator().manual_seed(seed)
        down, up = (_drawn(tensor.shape, generator) for tensor in (layer.vera_a, layer.vera_b))
        return layer.with_tensors({"vera_b": up, "vera_a": down})

    @classmethod
    def undrawn(cls, shape: Shape, rank: int) -> Vera:
        if len(shape) != 2:
            raise UnsuitedError("E-vera-not-linear", got=str(list(shape)))
        zero = torch.zeros(())
        return cls(
            vera_lambda_b=torch.zeros(shape[0]),
            vera_lambda_d=torch.full((rank,), START),
            vera_b=zero.expand(shape[0], rank),
            vera_a=zero.expand(rank, shape[1]),
        )

    @property
    def proportional(self) -> bool:
        return True

    def sides(self, weight: Tensor) -> Sides:
        outputs, inputs = weight.shape
        held = (self.vera_lambda_b, self.vera_b[:outputs], self.vera_lambda_d, self.vera_a[:, :inputs])
        b, up, d, down = (part.to(weight.device, weight.dtype) for part in held)
        return Sides(beside=(LowRank(column(b) * up, column(d) * down, 1.0),))

    def alone(self, weight: Shape) -> Lora:
        """A LoRA of the same rank, with both vectors multiplied into its factors."""
        if not weight:
            raise LayerError("E-vera-inputs-unknown")
        held = torch.zeros(1, dtype=compute_dtype(self.vera_lambda_b.dtype)).expand(weight)
        (form,) = self.sides(held).beside
        assert isinstance(form, LowRank)
        up, down = form.up, form.down
        return Lora(
            lora_up=up, lora_down=down, alpha=float(len(down)), diff_b=self.diff_b, set_bias=self.set_bias
        )

    @property
    def rows_apart(self) -> bool:
        return True

    def row_axes(self) -> Mapping[str, int] | None:
        return {**self._axes("O"), field_of(B): 0}

    def column_axes(self) -> Mapping[str, int]:
        return {field_of(A): 1}


def _drawn(shape: Shape, generator: torch.Generator) -> Tensor:
    bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
