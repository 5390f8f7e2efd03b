"""LoHa: the Hadamard product of two low-rank matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..changes.forms import Hadamard
from ..errors import LayerError
from ..maths.shapes import Shape, flat_shape, shown
from .base import Join, Products
from .checks import agree, folded, multiplied, scale
from .factored import Factored, pair_of

W1_A, W1_B, W2_A, W2_B = "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"
T1, T2 = "hada_t1", "hada_t2"
PAIRS = ((W1_A, W1_B, T1), (W2_A, W2_B, T2))
"""Left factor, right factor and Tucker core of each of the two matrices."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Loha(Factored):
    """delta = alpha / r * (w1_a @ w1_b) * (w2_a @ w2_b), element by element.

    w?_a (O, r), w?_b (r, K). Tucker: w?_a (r, O), w?_b (r, I), t? (r, r, *kernel), and in place
    of each matrix product E[p, q, ...] = sum_ij t[i, j, ...] w_a[i, p] w_b[j, q]. For convolutions OneTrainer
    writes the same numbers as w?_a (O, r, 1, 1) and w?_b (r, I, *kernel).

    Source: Hyeon-Woo et al., "FedPara" (2108.06098), eq. 2 and 3; key names by LyCORIS (2309.14859).
    """

    algorithm: ClassVar[str] = "loha"
    downs: ClassVar[tuple[str, ...]] = ("hada_w1_b", "hada_w2_b")
    products: ClassVar[Products] = (
        tuple(name for pair in PAIRS for name in pair),
        *Factored.products,
    )
    cores: ClassVar[tuple[str, ...]] = (T1, T2)
    join: ClassVar[Join | None] = Join(products=(("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")))
    variants: ClassVar[tuple[frozenset[str], ...]] = (
        frozenset({W1_A, W1_B, W2_A, W2_B}),
        frozenset({W1_A, W1_B, W2_A, W2_B, T1, T2}),
    )

    hada_w1_a: Tensor
    hada_w1_b: Tensor
    hada_w2_a: Tensor
    hada_w2_b: Tensor
    hada_t1: Tensor | None = None
    hada_t2: Tensor | None = None

    @classmethod
    def plain_shape(cls, shapes: Mapping[str, Shape]) -> Shape:
        first, second = (multiplied(shapes, *pair, turned=True) for pair in PAIRS)
        agree("output sizes", (W1_A, first[0]), (W2_A, second[0]))
        agree("input sizes", (W1_B, flat_shape(first)[1]), (W2_B, flat_shape(second)[1]))
        if len(first) > 2 and len(second) > 2 and first != second:
            raise LayerError(
                f"the kernels of {W1_B} and {W2_B} disagree",
                got=f"{shown(first)} and {shown(second)}",
                expected="one shape",
            )
        # Either of the two may have its kernel folded into the columns.
        return max(first, second, key=len)

    @classmethod
    def work(cls, shapes: Mapping[str, Shape]) -> int:
        return max(folded(shapes, core, right) for _, right, core in PAIRS)

    @classmethod
    def rank_of(cls, shapes: Mapping[str, Shape]) -> int:
        return shapes[W1_B][0]

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

    def factor_axes(self) -> Mapping[str, int]:
        # With a core the left factors are stored transposed.
        return dict.fromkeys(("hada_w1_a", "hada_w2_a"), 0 if self.hada_t1 is None else 1)

    def factor_columns(self) -> Mapping[str, int]:
        return {"hada_w1_b": 1, "hada_w2_b": 1}
