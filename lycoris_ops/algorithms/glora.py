"""GLoRA: a low-rank change, plus the weight times a low-rank matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..changes.forms import LowRank
from ..changes.operators import Product, Sides
from ..errors import LayerError
from ..maths.shapes import Shape
from ..maths.tensors import fold_core
from .axes import Table, Variant
from .base import IGNORED, kaiming
from .checks import dimensions, scale
from .training import Trained

A1, A2, B1, B2, BM = (f"{name}.weight" for name in ("a1", "a2", "b1", "b2", "bm"))


@dataclass(frozen=True, eq=False, kw_only=True)
class Glora(Trained):
    """delta = alpha / r * (b1 @ b2 + W @ a1 @ a2).

    On a convolution a1 @ a2 mixes the input channels, in the same way at each place of the kernel.
    a1 (I, r), a2 (r, I), b1 (O, r), b2 (r, I, *kernel); Tucker: bm (r, r, *kernel) and b2 (r, I, 1, ...).
    The older layout has each pair the other way round: a1 (r, I), a2 (I, r), b1 (r, K), b2 (O, r).

    Source: Chavan et al., "One-for-All" (2306.07967), eq. 9; layouts by LyCORIS.
    """

    algorithm: ClassVar[str] = "glora"
    table: ClassVar[Table] = Table(
        ({A1: "I r 1*", A2: "r I 1*"}, {B1: "O s 1*", B2: "s I k*"}),
        ({A1: "I r 1*", A2: "r I 1*"}, {B1: "O p 1*", BM: "p s k*", B2: "s I 1*"}),
        ({A2: "I r 1*", A1: "r I 1*"}, {B2: "O s 1*", B1: "s I k*"}),
        alpha="scales",
    )
    in_comfy: ClassVar[bool] = True

    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor
    bm: Tensor | None = None

    @classmethod
    def variant_of(cls, shapes: Mapping[str, Shape]) -> Variant:
        newer, core, older = cls.table.each
        if BM in shapes:
            return core
        a1, a2, b1, b2 = (dimensions(shapes, name) for name in (A1, A2, B1, B2))
        if _is_new(a1, a2, b1, b2):
            return newer
        if not b2[1] == b1[0] == a1[0] == a2[1]:
            raise LayerError(
                "E-glora-ranks-disagree", got=", ".join(str(list(factor)) for factor in (a1, a2, b1, b2))
            )
        return older

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Glora:
        """a1 and b1 uniform (Kaiming, a = sqrt(5)), a2 and b2 zero."""
        generator = torch.Generator().manual_seed(seed)
        ones = tuple(1 for _ in shape[2:])
        return cls(
            a1=kaiming((shape[1], rank, *ones), generator),
            a2=torch.zeros(rank, shape[1], *ones),
            b1=kaiming((shape[0], rank, *ones), generator),
            b2=torch.zeros(rank, *shape[1:]),
            alpha=alpha,
        )

    def fault_in_comfy(self) -> str | None:
        return IGNORED if self.bm is not None else super().fault_in_comfy()

    def sides(self, weight: Tensor) -> Sides:
        a1, a2, up, down = (factor.to(weight.device, weight.dtype).flatten(1) for factor in self._factors())
        factor = scale(self.alpha, a1.shape[1])
        return Sides(inputs=Product(a1, a2, factor), beside=(LowRank(up, down, factor),))

    @property
    def rows_apart(self) -> bool:
        return True

    def _factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a1 (I, r), a2 (r, I), up (O, r), down (r, K) from either layout."""
        a1, a2, b1, b2 = self.a1, self.a2, self.b1, self.b2
        if self.bm is not None:
            return a1, a2, b1, fold_core(self.bm, b2)
        if self.variant is self.table.each[0]:
            return a1, a2, b1, b2
        return a2, a1.flatten(1), b2, b1


def _is_new(a1: Shape, a2: Shape, b1: Shape, b2: Shape) -> bool:
    """Whether the layout is the newer one, with a1 (I, r) and b1 (O, r).

    Where the shapes agree with both layouts, r is taken to be the smaller side of a1.
    """
    new = b2[0] == b1[1] == a1[1] == a2[0]
    old = b2[1] == b1[0] == a1[0] == a2[1]
    return new and not (old and a1[0] < a1[1])
