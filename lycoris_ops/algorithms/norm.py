"""Normalisation layers: a difference of their weight, and of their bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..changes.forms import Dense
from ..maths.shapes import Shape
from .axes import Table
from .base import column
from .fitting import Delta, Fitted, Offer
from .training import Trained

WEIGHT, BIAS = "w_norm", "b_norm"


@dataclass(frozen=True, eq=False, kw_only=True)
class Norm(Trained, Fitted):
    """delta = w_norm (C,); b_norm (C,) is added to the bias. Source: LyCORIS' `train_norm`."""

    algorithm: ClassVar[str] = "norm"
    table: ClassVar[Table] = Table(
        {WEIGHT: "<O>"},
        {WEIGHT: "<O>", BIAS: "<O>, bias"},
        {BIAS: "<O>, bias"},
        alpha=None,
        extras={},
        weight="O",
    )
    in_comfy: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    w_norm: Tensor | None = None
    b_norm: Tensor | None = None

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Norm:
        """Zeros; rank, alpha and seed have no meaning here."""
        return cls(w_norm=torch.zeros(shape[:1]))

    @classmethod
    def fit(cls, delta: Delta) -> tuple[Offer, ...]:
        """w_norm (C,): the change of a norm's weight itself."""
        if len(delta.shape) != 1:
            return ()
        return (Offer.whole(cls.algorithm, delta, lambda values: cls(w_norm=values)),)

    def additive(self) -> tuple[Dense, ...]:
        return () if self.w_norm is None else (Dense(column(self.w_norm)),)
