"""LoKr: a Kronecker product, each factor full or low-rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..changes.forms import Dense, Kronecker, product
from ..maths.decompositions import Triples, balanced, leading_span, triples_of
from ..maths.shapes import Rows, Shape, factorization
from ..maths.tensors import compute_dtype, energy, fetched
from .axes import Table
from .base import IGNORED, Layer, blocks_of, cut, kaiming
from .checks import scale
from .factored import BESIDE, Factored, pair_of
from .fitting import Delta, Offer, running
from .planning import Planned, first

W1, W1_A, W1_B = "lokr_w1", "lokr_w1_a", "lokr_w1_b"
W2, W2_A, W2_B, T2 = "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"
FACTORS = (2, 4, 8, 16, 32, 64, -1)
"""The factors that are tried, on a change and on a gradient."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Lokr(Factored, Planned):
    """delta = scale * kron(w1, w2), O = l * k, I = i * j.

    w1 (l, i), or w1_a (l, r) @ w1_b (r, i); w2 (k, j, *kernel), or w2_a (k, r) @ w2_b (r, j * prod(kernel)),
    or Tucker: t2 (r, r, *kernel), w2_a (r, k), w2_b (r, j). The scale is alpha / r with r the rank of
    w2, or of w1 where only w1 is factored; with both factors full it is 1, whatever alpha says
    (such files store alpha for their trainer's book-keeping, up to 1e12).

    `product_of` "peft" with w2 (k, j, K) is the product that PEFT trains on a Conv1d with a full w2: its
    kron(w1, w2) aligns w1 with the last two dimensions of w2, and the result (k, l * j, i * K) is read as
    (O, I, K). This differs from the change above, and is not a Kronecker product of matrices (O, I * K).
    With a low-rank w2, PEFT's product on a Conv1d is the one above.

    Source: Edalati et al., "KronA" (2212.10650), eq. 4; layout and key names by LyCORIS (2309.14859).
    """

    algorithm: ClassVar[str] = "lokr"
    # In PEFT's comparison of methods on FLUX.2 klein, LoKr at this rate equals a LoRA of 50 times its size.
    fresh_rate: ClassVar[float] = 10.0
    # O = l * m, I = i * j.
    table: ClassVar[Table] = Table(
        {W1: "l i 1*", W2: "m j k*"},
        {W1: "l i 1*", W2_A: "m r 1*", W2_B: "r j k*"},
        {W1: "l i 1*", T2: "p r k*", W2_A: "p m 1*", W2_B: "r j 1*"},
        {W1_A: "l r 1*", W1_B: "r i 1*", W2: "m j k*"},
        {W1_A: "l q 1*", W1_B: "q i 1*", W2_A: "m r 1*", W2_B: "r j k*"},
        {W1_A: "l q 1*", W1_B: "q i 1*", T2: "p r k*", W2_A: "p m 1*", W2_B: "r j 1*"},
        alpha="scales",
        extras=BESIDE,
        where={"O": "l m", "I": "i j"},
    )
    in_comfy: ClassVar[bool] = True

    lokr_w1: Tensor | None = None
    lokr_w1_a: Tensor | None = None
    lokr_w1_b: Tensor | None = None
    lokr_w2: Tensor | None = None
    lokr_w2_a: Tensor | None = None
    lokr_w2_b: Tensor | None = None
    lokr_t2: Tensor | None = None
    product_of: Literal["lycoris", "peft"] = "lycoris"

    @classmethod
    def init(
        cls,
        shape: Shape,
        rank: int,
        alpha: float,
        *,
        seed: int,
        factor: int = -1,
        tucker: bool = False,
        decompose_both: bool = False,
    ) -> Lokr:
        """w1, w2_a and t2 uniform (Kaiming, a = sqrt(5)), w2_b or a full w2 zero.

        `factor` splits both sizes as in `maths.shapes.factorization`; w2 is factored where that saves
        parameters, that is where rank < max(k, j) / 2. `decompose_both` factors w1 alike, where
        rank < max(l, i) / 2. `tucker` factors the kernel of a convolution into t2 where w2 is factored.
        """
        generator = torch.Generator().manual_seed(seed)
        outer_rows, inner_rows = factorization(shape[0], factor)
        outer_columns, inner_columns = factorization(shape[1], factor)
        kernel = shape[2:]
        tensors: dict[str, Tensor] = {}
        if decompose_both and rank < max(outer_rows, outer_columns) / 2:
            tensors["lokr_w1_a"] = kaiming((outer_rows, rank), generator)
            tensors["lokr_w1_b"] = kaiming((rank, outer_columns), generator)
        else:
            tensors["lokr_w1"] = kaiming((outer_rows, outer_columns), generator)
        if rank >= max(inner_rows, inner_columns) / 2:
            tensors["lokr_w2"] = torch.zeros(inner_rows, inner_columns, *kernel)
        elif tucker and math.prod(kernel) > 1:
            tensors["lokr_t2"] = kaiming((rank, rank, *kernel), generator)
            tensors["lokr_w2_a"] = kaiming((rank, inner_rows), generator)
            tensors["lokr_w2_b"] = torch.zeros(rank, inner_columns)
        else:
            tensors["lokr_w2_a"] = kaiming((inner_rows, rank), generator)
            tensors["lokr_w2_b"] = torch.zeros(rank, inner_columns * math.prod(kernel))
        return replace(cls(alpha=alpha), **tensors)

    def fault_in_comfy(self) -> str | None:
        return IGNORED if self.lokr_t2 is not None else super().fault_in_comfy()

    @classmethod
    def most_rank(cls, shape: Shape) -> None:
        """No bound: w2 stays full where the rank would not make it smaller."""
        return

    @classmethod
    def started(
        cls,
        start: Mapping[str, Tensor],
        shape: Shape,
        rank: int | None,
        scale: float,
        *,
        seed: int,
        factor: int | None = None,
    ) -> Lokr:
        """As in `Planned`. A rank of None gives a full w2. Its scale is always 1, so w1 holds `scale`."""
        generator = torch.Generator().manual_seed(seed)
        (rows, k), (columns, j) = (factorization(size, factor or -1) for size in shape[:2])
        w1 = start["lokr_w1"].clone() if "lokr_w1" in start else kaiming((rows, columns), generator)
        if rank is None:
            return cls(lokr_w1=w1 * scale, lokr_w2=torch.zeros(k, j, *shape[2:]), alpha=1.0)
        left = start["lokr_w2_a"] if "lokr_w2_a" in start else kaiming((k, rank), generator).T
        return cls(
            lokr_w1=w1,
            lokr_w2_a=first(left, rank, (k,), seed=seed).T.contiguous(),
            lokr_w2_b=torch.zeros(rank, j * math.prod(shape[2:])),
            alpha=scale * rank,
        )

    @classmethod
    def fit(cls, delta: Delta) -> tuple[Offer, ...]:
        """The nearest Kronecker product for each factor in FACTORS, with a full w2 and with low-rank ones.

        w1 is the leading left singular vector of the rearranged change R(D) and w2 is R(D)^T w1, which keeps
        sigma_1(R(D))^2. A low-rank w2 has the leading singular triples of the full one, and keeps the sum of
        their squared singular values: for this w1, no other w2 of this rank is nearer.
        """
        shape = delta.shape
        if len(shape) < 2:
            return ()
        splits: dict[tuple[int, int], int | None] = {}
        for factor in FACTORS if delta.factor is None else (delta.factor,):
            split = factorization(shape[0], factor)[0], factorization(shape[1], factor)[0]
            splits.setdefault(split, factor)
        if delta.factor is None and delta.split is not None:
            splits.setdefault(delta.split, None)
        factors = {
            (rows, columns): factor
            for (rows, columns), factor in sorted(splits.items())
            if rows * columns > 1 and shape[0] % rows == 0 and shape[1] % columns == 0
        }
        outers = delta.outers(list(factors))
        flats = [inner.flatten(1) for _, inner in outers]
        # Above these ranks a full w2 is not larger.
        most = [min(delta.largest, (flat.numel() - 1) // sum(flat.shape)) for flat in flats]
        spans = [
            leading_span(flat, max(0, count), seed=delta.seed, pause=delta.pause)
            for flat, count in zip(flats, most, strict=True)
        ]
        energies = fetched(*(energy(inner) for _, inner in outers))
        triples = triples_of(*spans)
        cases = zip(outers, energies, triples, most, factors.values(), strict=True)
        return tuple(fit for case in cases for fit in cls._fits_of(delta, *case))

    @classmethod
    def _fits_of(
        cls,
        delta: Delta,
        outer: tuple[Tensor, Tensor],
        energy: Tensor,
        triples: Triples,
        most: int,
        factor: int | None,
    ) -> tuple[Offer, ...]:
        w1, inner = outer
        flat, kept = inner.flatten(1), float(energy)
        # Copies: these are slices, which would keep all of the vectors in memory.
        left, values, right = triples[0][:, :most].clone(), triples[1][:most], triples[2][:most].clone()
        # w1 has norm 1.
        root = kept**0.25 or 1.0

        def full(index: int) -> Lokr:
            return cls(lokr_w1=w1 * root, lokr_w2=inner / root, alpha=1.0)

        whole = Offer(
            algorithm=cls.algorithm,
            ranks=(None,),
            kept=(kept,),
            parameters=(w1.numel() + inner.numel(),),
            make=full,
            tensors=3,
            held=w1.nbytes + inner.nbytes,
            factor=factor,
            start={"lokr_w1": w1},
            sums=inner.abs().sum().reshape(1),
        )
        if most < 1:
            return (whole,)
        ranks = tuple(range(1, len(values) + 1))
        scale = delta.scale

        def low(index: int) -> Lokr:
            rank = index + 1
            # The three factors have the product S / scale.
            a, b = balanced(left[:, :rank], values[:rank] / (root * scale), right[:rank])
            return cls(lokr_w1=w1 * root, lokr_w2_a=a, lokr_w2_b=b, alpha=scale * rank)

        return whole, Offer(
            algorithm=cls.algorithm,
            ranks=ranks,
            kept=running(values.square()),
            parameters=tuple(w1.numel() + rank * sum(flat.shape) for rank in ranks),
            make=low,
            tensors=4,
            held=w1.nbytes + left.nbytes + right.nbytes,
            factor=factor,
            start={"lokr_w1": w1, "lokr_w2_a": left.T},
            # dL/dw2_b = w2_a^T w2 = S V^T.
            sums=values.to(right) * right.abs().sum(1),
        )

    def product(self) -> Kronecker | Dense:
        return self._peft_product() if self.of_peft else self._kronecker()

    @property
    def of_peft(self) -> bool:
        """Whether the product is PEFT's own for a Conv1d."""
        return self.product_of == "peft" and self.lokr_w2 is not None and self.lokr_w2.ndim == 3

    def _peft_product(self) -> Dense:
        form, w2 = self._kronecker(), self.lokr_w2
        assert w2 is not None
        dtype = compute_dtype(w2.dtype)
        aligned = torch.kron(product(form.w1, dtype, w2.device), w2.to(dtype)) * form.scale
        return Dense(aligned.reshape(self.plain_shape(self.shapes)).flatten(1))

    def _kronecker(self) -> Kronecker:
        rank = self.rank
        return Kronecker(
            w1=_matrix(self.lokr_w1, self.lokr_w1_a, self.lokr_w1_b, None),
            w2=_matrix(self.lokr_w2, self.lokr_w2_a, self.lokr_w2_b, self.lokr_t2),
            scale=1.0 if rank is None else scale(self.alpha, rank),
        )

    def _cut(self, side: str, axes: Mapping[str, int], ranges: Sequence[Rows]) -> Layer:
        """As in `Layer`. Ranges within a block, and PEFT's own product, have no small factors.

        The product is then a full w2, and w1 is a single 1.
        """
        size = self.variant.size(self.variant.sides[side][1], self.shapes)
        if not self.of_peft and blocks_of(ranges, size) is not None:
            return super()._cut(side, axes, ranges)
        formed = cut(self._formed(), "OI".index(side), ranges)
        if side == "O":
            formed = formed.reshape(len(formed), *self.plain_shape(self.shapes)[1:])
        own = dict.fromkeys(field for product in self.variant.products for field in product)
        own |= {W1: formed.new_ones(1, 1), W2: formed}
        held = self.tensors()
        beside = {name: cut(held[name], axis, ranges) for name, axis in axes.items() if name not in own}
        return replace(self, **beside, **own, product_of="lycoris")

    def _formed(self) -> Tensor:
        """The product as a matrix."""
        factor = next(value for value in (self.lokr_w1, self.lokr_w1_a) if value is not None)
        return self.product().dense(compute_dtype(factor.dtype), factor.device)


def _matrix(
    full: Tensor | None, left: Tensor | None, right: Tensor | None, core: Tensor | None
) -> tuple[Tensor, ...]:
    """One Kronecker factor as a single matrix or as the pair whose product it is."""
    if full is not None:
        return (full.flatten(1),)
    assert left is not None and right is not None
    return pair_of(left, right, core)
