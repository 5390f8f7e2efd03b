"""T-LoRA: a change of the singular triples that the adapter started from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from ..algebra import Shape, singular
from ..errors import LayerError
from ..forms import LowRank
from ..sides import Sides
from .base import Layer, agree, dimensions, scale

if TYPE_CHECKING:
    from typing_extensions import Self

Q, P, LAMBDA = "q_layer.weight", "p_layer.weight", "lambda_layer"


@dataclass(frozen=True, eq=False, kw_only=True)
class Tlora(Layer):
    """delta = alpha / r * (P diag(l) Q - P0 diag(l0) Q0), with P0, l0, Q0 from the SVD of W.

    p_layer (O, r), q_layer (r, I), lambda_layer (1, r). The file does not hold P0, l0 and Q0: they are
    the singular triples of the base weight that `sig_type` names, the r largest ("principal"), the r
    smallest ("last") or the r in the middle, so the adapter is exact on the very model that it was
    trained on. A convolution with a kernel above 1 is not defined by its source.

    Source: Soboleva et al., "T-LoRA" (2507.05964), section 3.3; layout by LyCORIS 4.
    """

    algorithm: ClassVar[str] = "tlora"
    variants: ClassVar[tuple[frozenset[str], ...]] = (frozenset({Q, P, LAMBDA}),)
    scaled_by_alpha: ClassVar[bool] = True

    q_layer: Tensor
    p_layer: Tensor
    lambda_layer: Tensor
    sig_type: Literal["principal", "last", "middle"] | None = None

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Shape:
        down, up = dimensions(shapes, Q), dimensions(shapes, P)
        agree("ranks", (P, up[1]), (Q, down[0]))
        agree("ranks", (LAMBDA, math.prod(shapes[LAMBDA])), (Q, down[0]))
        return (up[0], *down[1:])

    @classmethod
    def rank_of(cls, shapes: Mapping[str, Shape]) -> int:
        return shapes[Q][0]

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Self:
        """Raises LayerError: a T-LoRA layer starts from the weight itself, not from its shape."""
        raise LayerError(
            "a tlora layer cannot be made from a shape alone",
            got=str(list(shape)),
            expected="the weight that it starts from",
        )

    @property
    def reads_weight(self) -> bool:
        return True

    def sides(self, weight: Tensor) -> Sides:
        if self.sig_type is None:
            raise LayerError(
                "a tlora file does not hold the factors that it started from, nor which they were",
                got="no sig_type",
                expected="sig_type = principal, last or middle",
                hint="Give the sig_type that it was trained with, as an option or in ss_network_args",
            )
        up, down, values = (
            part.to(weight.device, weight.dtype).flatten(1)
            for part in (self.p_layer, self.q_layer, self.lambda_layer)
        )
        rank = len(down)
        flat = weight.reshape(weight.shape[0], -1)
        left, middle, right = singular(flat)
        known = min(rank, len(middle))
        first = {
            "principal": 0,
            "last": len(middle) - known,
            "middle": (len(middle) - known) // 2,
        }[self.sig_type]
        kept = slice(first, first + known)
        factor = scale(self.alpha, rank)
        after = LowRank(up * values.flatten(), down, factor)
        before = LowRank(left[:, kept] * middle[kept], right[kept], -factor)
        return Sides(beside=(after, before))
