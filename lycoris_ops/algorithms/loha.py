"""LoHa: the Hadamard product of two low-rank matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..changes.forms import Hadamard
from ..maths.shapes import Shape, flat_shape
from .axes import Table
from .checks import scale
from .factored import BESIDE, Factored, pair_of

W1_A, W1_B, W2_A, W2_B = "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"
T1, T2 = "hada_t1", "hada_t2"


@dataclass(frozen=True, eq=False, kw_only=True)
class Loha(Factored):
    """delta = alpha / r * (w1_a @ w1_b) * (w2_a @ w2_b), element by element.

    w?_a (O, r), w?_b (r, K). Tucker: w?_a (r, O), w?_b (r, I), t? (r, r, *kernel), and in place
    of each matrix product E[p, q, ...] = sum_ij t[i, j, ...] w_a[i, p] w_b[j, q]. For convolutions OneTrainer
    writes the same numbers as w?_a (O, r, 1, 1) and w?_b (r, I, *kernel).

    Source: Hyeon-Woo et al., "FedPara" (2108.06098), eq. 2 and 3; key names by LyCORIS (2309.14859).
    """

    algorithm: ClassVar[str] = "loha"
    table: ClassVar[Table] = Table(
        {W1_A: "O r 1*", W1_B: "r I k*", W2_A: "O s 1*", W2_B: "s I k*"},
        {
            W1_A: "p O 1*",
            T1: "p r k*",
            W1_B: "r I 1*",
            W2_A: "q O 1*",
            T2: "q s k*",
            W2_B: "s I 1*",
        },
        alpha="scales",
        extras=BESIDE,
    )
    in_comfy: ClassVar[bool] = True

    hada_w1_a: Tensor
    hada_w1_b: Tensor
    hada_w2_a: Tensor
    hada_w2_b: Tensor
    hada_t1: Tensor | None = None
    hada_t2: Tensor | None = None

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int, tucker: bool = False) -> Loha:
        """w1_a normal(0, 0.1), w1_b and w2_b normal(0, 1), w2_a zero, as in FedPara's code.

        `tucker` factors the kernel of a convolution into t1 and t2, normal(0, 0.1) as in LyCORIS. It has
        no effect for a kernel of one value.
        """
        generator = torch.Generator().manual_seed(seed)

        def normal(std: float, *sizes: int) -> Tensor:
            return torch.empty(sizes).normal_(mean=0.0, std=std, generator=generator)

        out, flat = flat_shape(shape)
        if tucker and math.prod(shape[2:]) > 1:
            return cls(
                hada_w1_a=normal(0.1, rank, out),
                hada_w1_b=normal(1.0, rank, shape[1]),
                hada_t1=normal(0.1, rank, rank, *shape[2:]),
                hada_w2_a=torch.zeros(rank, out),
                hada_w2_b=normal(1.0, rank, shape[1]),
                hada_t2=normal(0.1, rank, rank, *shape[2:]),
                alpha=alpha,
            )
        return cls(
            hada_w1_a=normal(0.1, out, rank),
            hada_w1_b=normal(1.0, rank, flat),
            hada_w2_a=torch.zeros(out, rank),
            hada_w2_b=normal(1.0, rank, flat),
            alpha=alpha,
        )

    def product(self) -> Hadamard:
        w1_a, w1_b = pair_of(self.hada_w1_a, self.hada_w1_b, self.hada_t1)
        w2_a, w2_b = pair_of(self.hada_w2_a, self.hada_w2_b, self.hada_t2)
        rank = self.hada_w1_b.shape[0]
        return Hadamard(w1_a=w1_a, w1_b=w1_b, w2_a=w2_a, w2_b=w2_b, scale=scale(self.alpha, rank))
