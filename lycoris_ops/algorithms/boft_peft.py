"""BOFT as PEFT has it: butterfly rotations of a layer's inputs, and a factor for each output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..changes.operators import BlockDiagonal, Chain, Diagonal, Operator, Permuted, Sides
from ..maths.shapes import Extent, Shape, flat_shape
from .axes import Table
from .base import block_of
from .boft import check_stages
from .oft import turned
from .training import Trained

R, S = "boft_R", "boft_s"


@dataclass(frozen=True, eq=False, kw_only=True)
class BoftPeft(Trained):
    """W' = s * W B^T over the flattened inputs, B = (P_m R_m P_m^T) ... (P_1 R_1 P_1^T).

    boft_R (m, n, b, b) with I * prod(kernel) = n * b, and m the number of stages; boft_s (O, 1) holds s, or
    (1, O) on a convolution.
    Each block of R is (I - Q) (I + Q)^-1 with Q = (boft_R - boft_R^T) / 2: half the angle of LyCORIS'
    BOFT, in the opposite sense.

    With one stage nothing is permuted. Otherwise P_i sorts the half blocks (b / 2 inputs) in each run of
    2^(i - 1) * b inputs: those at even places before those at odd places.

    Source: Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization"
    (2311.06243), eq. 4; layout by PEFT.
    """

    algorithm: ClassVar[str] = "boft_peft"
    in_comfy: ClassVar[bool] = False
    table: ClassVar[Table] = Table({R: "m n r r", S: "<O>, around one"}, alpha=None, where={"I": "n r"})

    boft_r: Tensor
    boft_s: Tensor

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Extent:
        extent = super().shape(shapes)
        stages, count, rows, _ = shapes[R]
        # A single stage permutes nothing.
        if stages > 1:
            check_stages(cls.algorithm, stages, count, rows, "inputs")
        return extent

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> BoftPeft:
        """One stage of zero blocks, and s = 1; alpha has no meaning.

        The blocks have the largest size up to `rank` that divides the inputs.
        """
        size, count = block_of(flat_shape(shape)[1], rank, "inputs")
        # PEFT stores s of a convolution as (1, O).
        outputs, *inputs = shape
        scales = (1, outputs) if inputs[1:] else (outputs, 1)
        return cls(boft_r=torch.zeros(1, count, size, size), boft_s=torch.ones(scales))

    def sides(self, weight: Tensor) -> Sides:
        blocks = self.boft_r.to(weight.device, weight.dtype)
        turns = turned(blocks.transpose(-1, -2) - blocks, 0.5)
        stages, count, size, _ = turns.shape
        inputs = torch.arange(count * size, device=weight.device) if stages > 1 else turns.new_empty(0)
        steps: list[Operator] = []
        for stage, turn in enumerate(turns):
            if stages == 1:
                steps.append(BlockDiagonal(turn))
                continue
            halves = inputs.view(count >> stage, -1, size // 2)
            order = torch.cat([halves[:, 0::2], halves[:, 1::2]], 1).flatten()
            # PEFT has P R P^T, and `Permuted` is P^T R P: hence the inverse of `order`.
            steps.append(Permuted(torch.argsort(order), BlockDiagonal(turn)))
        factor = self.boft_s.to(weight.device, weight.dtype).flatten() - 1
        return Sides(outputs=Diagonal(factor), inputs=Chain(tuple(steps)).transposed())

    @property
    def rows_apart(self) -> bool:
        return True
