"""A full difference: stores the change itself, to the weight, the bias or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..changes.forms import Dense
from ..changes.operators import Diagonal, Sides
from ..errors import LayerError
from ..maths.shapes import Shape
from .base import DIFF_B, SET_BIAS, Join, Products, column
from .fitting import Delta, Fit, Fitted
from .training import Trained

if TYPE_CHECKING:
    from typing_extensions import Self

DIFF, SET = "diff", "set_weight"


@dataclass(frozen=True, eq=False, kw_only=True)
class Full(Trained, Fitted):
    """delta = diff, or with set_weight, delta = set_weight - W.

    set_weight holds the values that the weight has at strength 1. Both tensors have the weight's shape,
    which may be (O,). `diff_b` (O,) is added to the bias; `set_bias` (O,) holds the values that the bias has
    at strength 1. Alpha has no meaning here.

    Source: the key names of LyCORIS ("full") and of ComfyUI's own saver.
    """

    algorithm: ClassVar[str] = "full"
    variants: ClassVar[tuple[frozenset[str], ...]] = (
        frozenset({DIFF}),
        frozenset({SET}),
        frozenset({DIFF_B}),
        frozenset({SET_BIAS}),
    )

    products: ClassVar[Products] = ((DIFF,),)
    whole: ClassVar[bool] = True
    fresh_rate: ClassVar[float] = 0.1
    join: ClassVar[Join | None] = Join(rows=("diff",))

    diff: Tensor | None = None
    set_weight: Tensor | None = None

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Shape:
        found = shapes.get(DIFF) or shapes.get(SET) or ()
        if 0 in found or (not found and not {DIFF_B, SET_BIAS} & shapes.keys()):
            raise LayerError("a full difference is empty", got=str(list(found)), expected="a weight's shape")
        return found

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Self:
        """diff zero; rank, alpha and seed have no meaning here."""
        return cls(diff=torch.zeros(shape))

    @classmethod
    def fit(cls, delta: Delta) -> tuple[Fit, ...]:
        """diff: the change itself, at the size of the weight."""
        return (Fit.whole(cls.algorithm, delta, lambda values: cls(diff=values)),)

    def additive(self) -> tuple[Dense, ...] | None:
        if self.set_weight is not None:
            return None
        return (Dense(_matrix(self.diff)),) if self.diff is not None else ()

    def sides(self, weight: Tensor) -> Sides:
        assert self.set_weight is not None
        # 1 + diag(-1) is zero, so W is removed.
        nothing = Diagonal(-torch.ones(weight.shape[0], dtype=weight.dtype, device=weight.device))
        return Sides(outputs=nothing, beside=(Dense(_matrix(self.set_weight)),))

    def row_axes(self) -> Mapping[str, int]:
        return {"diff": 0, "set_weight": 0}

    def column_axes(self) -> Mapping[str, int] | None:
        return None if self.set_weight is not None else {"diff": 1}


def _matrix(values: Tensor) -> Tensor:
    return values.flatten(1) if values.ndim > 1 else column(values)
