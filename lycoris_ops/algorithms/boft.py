"""BOFT: several block-diagonal rotations, with butterfly permutations between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..changes.operators import BlockDiagonal, Chain, Diagonal, Operator, Permuted, Sides
from ..errors import LayerError, UnsuitedError
from ..maths.shapes import Extent, Shape
from .axes import Table
from .base import IGNORED
from .oft import BLOCKS, TURNED, Oft


@dataclass(frozen=True, eq=False, kw_only=True)
class Boft(Oft):
    """W' = rescale * (P_{m-1}^T R_{m-1} P_{m-1}) ... (P_0^T R_0 P_0) W, each R block-diagonal as in diag-OFT.

    oft_blocks (m, n, b, b) with O = n * b, and m the number of stages. P_i interleaves the two halves of
    every 2^i * b consecutive rows, so that a block of stage i mixes rows that are 2^i * b / 2 apart.

    Source: Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization"
    (2311.06243), eq. 4; layout by LyCORIS.
    """

    algorithm: ClassVar[str] = "boft"
    table: ClassVar[Table] = Table({BLOCKS: "m n r r, exact"}, **TURNED)

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Extent:
        extent = super().shape(shapes)
        stages, count, size, _ = shapes[BLOCKS]
        check_stages(cls.algorithm, stages, count, size, "rows")
        return extent

    @property
    def rows_apart(self) -> bool:
        """False: later stages mix the blocks."""
        return False

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Boft:
        """p + 1 stages of n = 2^p zero blocks; `alpha` is the constraint.

        The blocks have the largest even size up to `rank` (at least 2). Raises UnsuitedError where the
        outputs cannot be cut into 2^p such blocks.
        """
        outputs = shape[0]
        sizes = [
            outputs // count
            for count in (1 << p for p in range(outputs.bit_length()))
            if outputs % count == 0 and outputs // count % 2 == 0 and outputs // count <= max(rank, 2)
        ]
        if not sizes:
            raise UnsuitedError("E-boft-outputs-indivisible", rank=rank, got=str(outputs))
        size = max(sizes)
        stages = (outputs // size - 1).bit_count() + 1
        return cls(oft_blocks=torch.zeros(stages, outputs // size, size, size), alpha=alpha)

    def fault_in_comfy(self) -> str | None:
        return IGNORED if self.alpha is None else super().fault_in_comfy()

    def sides(self, weight: Tensor) -> Sides:
        steps: list[Operator] = []
        for stage, extra in enumerate(self.turned(weight)):
            # Half the number of consecutive rows that this stage interleaves.
            half = extra.shape[1] // 2 << stage
            order = torch.arange(weight.shape[0], device=weight.device)
            order = order.view(-1, 2, half).transpose(1, 2).flatten()
            steps.append(Permuted(order, BlockDiagonal(extra)))
        if self.rescale is not None:
            steps.append(Diagonal(self.rescale.to(weight.device, weight.dtype).flatten() - 1))
        return Sides(outputs=Chain(tuple(steps)))


def check_stages(algorithm: str, stages: int, count: int, size: int, of: str) -> None:
    """Raise LayerError unless `stages` butterflies fit `count` blocks of `size`; `of` is the unit of a size.

    Stage i interleaves two halves of 2^i blocks, so the number of blocks limits the number of stages.
    """
    # Compare `stages` first: it is read from a file, and 2 ** stages may have thousands of digits.
    if size % 2 or stages > count.bit_length() or count % (1 << stages - 1):
        wanted = f"a multiple of {1 << stages - 1} of them" if stages < 64 else "fewer stages"
        raise LayerError(
            "E-boft-stages-misfit",
            algorithm=algorithm,
            stages=stages,
            count=count,
            size=size,
            of=of,
            wanted=wanted,
        )
