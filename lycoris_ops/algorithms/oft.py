"""Diag-OFT: a block-diagonal rotation of a layer's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..changes.operators import BlockDiagonal, Sides
from ..errors import LayerError
from ..maths.decompositions import NoInverseError, cayley
from ..maths.shapes import Shape
from ..maths.tensors import largest, norm
from .axes import BIASES, Table
from .base import block_of
from .checks import MOST_SCALE, check_alpha
from .training import Trained

BLOCKS, RESCALE = "oft_blocks", "rescale"
TURNED: dict[str, Any] = {
    "alpha": "bounds",
    "extras": {**BIASES, RESCALE: "<O>, around one"},
    "where": {"O": "n r"},
}
"""What the tables of OFT and BOFT have in common."""
SQUARES = "squares the strength: 0.5 acts as 0.25, and -1 as 1"
"""See `Layer.fault_in_comfy`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Oft(Trained):
    """W' = rescale * R^T W, R block-diagonal, each block (I + Q) (I - Q)^-1 with Q = B - B^T.

    oft_blocks B (n, b, b) with O = n * b; rescale (O, 1, ...), optional. alpha is the constraint: where
    it is above 0 and the Frobenius norm of all blocks Q together exceeds alpha * O, all are scaled down
    alike, to that norm.

    Source: Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning" (2306.07280),
    eq. 3 and 5; layout and constraint by LyCORIS and by kohya-ss, whose files are the same.
    """

    algorithm: ClassVar[str] = "oft"
    in_comfy: ClassVar[bool] = True
    table: ClassVar[Table] = Table({BLOCKS: "n r r, exact"}, **TURNED)

    oft_blocks: Tensor
    rescale: Tensor | None = None

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Oft:
        """Zero blocks of the largest size up to `rank` that divides O; `alpha` is the constraint."""
        size, count = block_of(shape[0], rank, "outputs")
        return cls(oft_blocks=torch.zeros(count, size, size), alpha=alpha)

    def sides(self, weight: Tensor) -> Sides:
        extra = self.turned(weight).transpose(1, 2)
        if self.rescale is not None:
            factors = self.rescale.to(weight.device, weight.dtype).view(extra.shape[:2])
            extra = extra * factors[..., None] + torch.diag_embed(factors - 1)
        return Sides(outputs=BlockDiagonal(extra))

    def fault_in_comfy(self) -> str | None:
        if self.alpha:
            return f"{SQUARES}, and limits the rotation to alpha, not to alpha times the number of outputs"
        return SQUARES

    @property
    def rows_apart(self) -> bool:
        """Whether the blocks turn apart: not under a constraint, whose norm is over all of them."""
        return self.alpha is None or self.alpha <= 0

    def turned(self, weight: Tensor) -> Tensor:
        """R - I of the rotation R of each block, shaped as `oft_blocks`, in the weight's dtype and device.

        Raises LayerError where alpha is NaN or infinite, and as `turned` does.
        """
        blocks = self.oft_blocks.to(weight.device, weight.dtype)
        skew = blocks - blocks.transpose(-1, -2)
        if self.alpha is not None:
            check_alpha(self.alpha, "a constraint")
        bound = (self.alpha or 0) * weight.shape[0]
        # A bound beyond float32 bounds nothing.
        if 0 < bound <= MOST_SCALE:
            skew = bounded(skew, bound)
        return turned(skew)


def bounded(skew: Tensor, bound: float, *dims: int) -> Tensor:
    """Scale blocks down to the norm `bound` where they exceed it; the norm is over `dims`, or over all.

    Where the norm overflows the result is NaN, not zero, so that whoever looks at the change sees it.
    """
    length = norm(skew, *dims)
    # The difference is 0, or NaN for an infinite norm. With `clamp_min` the factor is 1 where the norm is
    # within the bound.
    return skew * (bound / length.clamp_min(bound) + (length - length))


def turned(skew: Tensor, times: float = 1.0) -> Tensor:
    """R - I of the Cayley transform R of Q = times * skew, skew-symmetric blocks (..., b, b).

    Raises LayerError where values are so large that I - Q has no inverse in their dtype; on an accelerator
    the result is then not finite.
    """
    try:
        return cayley(skew, times)
    except NoInverseError:
        raise LayerError("E-rotation-too-large", skew=f"{largest(skew):.3g}") from None
