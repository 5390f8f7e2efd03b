"""A full difference: the change, or the new values, of a weight or some of its rows, a bias, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..changes.forms import Dense, LowRank
from ..changes.operators import Diagonal, Sides
from ..errors import LayerError
from ..maths.shapes import Shape
from .axes import BIASES, DIFF_B, SET_BIAS, Table
from .base import IGNORED
from .fitting import Delta, Fitted, Offer
from .training import Trained

DIFF, SET = "diff", "set_weight"
SET_ROWS, ROWS_AT = "set_rows", "set_rows_at"


@dataclass(frozen=True, eq=False, kw_only=True)
class Full(Trained, Fitted):
    """delta = diff, or with set_weight, delta = set_weight - W.

    set_weight holds the values that the weight has at strength 1. Both tensors have the weight's shape,
    which may be (O,). `diff_b` (O,) is added to the bias; `set_bias` (O,) holds the values that the bias has
    at strength 1. Alpha has no meaning here.

    set_rows (n, I) holds the values of only n rows of the weight, such as the rows of some tokens in an
    embedding. set_rows_at (n,) holds the numbers of these rows, counted from 0:
    delta[set_rows_at] = set_rows - W[set_rows_at], else 0.

    Source: the key names of LyCORIS ("full") and of ComfyUI's own saver.
    """

    algorithm: ClassVar[str] = "full"
    table: ClassVar[Table] = Table(
        {DIFF: "O I? k*"},
        {SET: "O I? k*, value"},
        {SET_ROWS: "n I, value", ROWS_AT: "<n>, number"},
        {DIFF_B: BIASES[DIFF_B]},
        {SET_BIAS: BIASES[SET_BIAS]},
        alpha=None,
    )
    in_comfy: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    fresh_rate: ClassVar[float] = 0.1

    diff: Tensor | None = None
    set_weight: Tensor | None = None
    set_rows: Tensor | None = None
    set_rows_at: Tensor | None = None

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Full:
        """diff zero; rank, alpha and seed have no meaning here."""
        return cls(diff=torch.zeros(shape))

    @classmethod
    def fit(cls, delta: Delta) -> tuple[Offer, ...]:
        """diff: the change itself, at the size of the weight."""
        return (Offer.whole(cls.algorithm, delta, lambda values: cls(diff=values)),)

    def check_values(self) -> None:
        if self.set_rows_at is None:
            return
        at = numbers_of(self.set_rows_at)
        if not all(row >= 0 and row == int(row) for row in at) or len(set(at)) < len(at):
            raise LayerError(
                "E-set-rows-not-distinct",
                rows_at=ROWS_AT,
                numbers=len(at),
                least=f"{min(at):g}",
                most=f"{max(at):g}",
                different=len(set(at)),
            )

    def check_fit(self, shape: Sequence[int]) -> None:
        super().check_fit(shape)
        if self.set_rows_at is None:
            return
        kept = vars(self)
        # Kept, because reading it waits for the device.
        if "_last" not in kept:
            kept["_last"] = int(self.set_rows_at.max())
        if kept["_last"] >= shape[0]:
            raise LayerError("E-set-row-absent", row=kept["_last"], rows=shape[0], needed=kept["_last"] + 1)

    def fault_in_comfy(self) -> str | None:
        if self.set_rows is not None:
            return IGNORED
        return None if self.set_weight is None else "replaces the weight at any strength, as at 1"

    def shrunk(self, ratio: float, weight: Tensor) -> Full:
        layer = super().shrunk(ratio, weight)
        if self.set_weight is not None:
            return replace(layer, set_weight=weight + ratio * (self.set_weight - weight))
        if self.set_rows is not None and self.set_rows_at is not None:
            rows = weight[self.set_rows_at.flatten().to(weight.device, torch.int64)]
            return replace(layer, set_rows=rows + ratio * (self.set_rows - rows))
        return layer

    def additive(self) -> tuple[Dense, ...] | None:
        if self.set_weight is not None or self.set_rows is not None:
            return None
        return (Dense(self.diff.reshape(len(self.diff), -1)),) if self.diff is not None else ()

    def sides(self, weight: Tensor) -> Sides:
        if self.set_rows is not None and self.set_rows_at is not None:
            at = self.set_rows_at.flatten().to(weight.device, torch.int64)
            removed = weight.new_zeros(weight.shape[0]).index_fill_(0, at, -1.0)
            # One column for each row that is set, with a single 1.
            selection = weight.new_zeros(weight.shape[0], len(at))
            selection[at, torch.arange(len(at), device=weight.device)] = 1.0
            return Sides(outputs=Diagonal(removed), beside=(LowRank(selection, self.set_rows, 1.0),))
        assert self.set_weight is not None
        # 1 + diag(-1) is zero, so W is removed.
        nothing = Diagonal(-torch.ones(weight.shape[0], dtype=weight.dtype, device=weight.device))
        return Sides(outputs=nothing, beside=(Dense(self.set_weight.reshape(len(self.set_weight), -1)),))

    @property
    def rows_apart(self) -> bool:
        return self.set_rows is None


def numbers_of(rows: Tensor) -> list[float]:
    """The values of `set_rows_at` as numbers."""
    return cast("Any", rows).flatten().tolist()
