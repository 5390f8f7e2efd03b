"""LoRA, and LoCon, which is LoRA on convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..changes.forms import Additive, LowRank
from ..errors import LayerError, UnsupportedError
from ..maths.decompositions import balanced, leading, singular, tucker
from ..maths.shapes import Extent, Shape, flat_shape, shown
from ..maths.tensors import compute_dtype, energy, fetched, fold_core
from .axes import Table
from .base import column, kaiming
from .checks import scale
from .factored import BESIDE, Factored
from .fitting import Delta, Offer
from .planning import Planned, first

UP, DOWN, MID = "lora_up.weight", "lora_down.weight", "lora_mid.weight"
EMBEDDING_UP, EMBEDDING_DOWN = "lora_embedding_B", "lora_embedding_A"
BIAS = "lora_B.bias"
RESHAPE = "reshape_weight"
ENLARGED = 1 << 26
"""The most values that an enlarged weight may have (256 MB in float32). Control models enlarge their first
layers, whose weights have fewer than a million."""
DIAGONAL = "lora_E"

Start = Literal["pissa", "olora"]
"""A part of the base weight that training starts from and that is subtracted from the base."""


def _pissa(weight: Tensor, rank: int, factor: float) -> LowRank:
    left, values, right = singular(weight)
    return LowRank(left[:, :rank] * values[:rank], right[:rank], 1.0)


def _olora(weight: Tensor, rank: int, factor: float) -> LowRank:
    # The first r rows of R in W = Q R are Q_r^T W, and the first r columns of W alone give Q_r.
    first = leading(weight[:, :rank])
    return LowRank(first, first.T @ weight, factor)


STARTS: dict[str, Callable[[Tensor, int, float], LowRank]] = {"pissa": _pissa, "olora": _olora}
"""For each start, a function of (weight (O, I), rank, scale) that returns the subtracted part of the
weight."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Lora(Factored, Planned):
    """delta = alpha / r * up @ down.

    Linear: up (O, r), down (r, I). Convolution: up (O, r, 1, ...), down (r, I, *kernel).
    Tucker: up (O, r, 1, ...), down (r, I, 1, ...), mid (r, r, *kernel), where
    delta[p, q, ...] = alpha / r * sum_mn up[p, m] mid[m, n, ...] down[n, q].
    PEFT's embedding, for a weight (V, D): lora_embedding_B (D, r), lora_embedding_A (r, V); delta is the
    product, transposed. `lora_B.bias` (O,) is added to the bias, scaled by alpha / r as well.
    `reshape_weight` holds the shape to which the weight is enlarged with zeros before delta is added
    (control models with more input channels).
    PEFT's AdaLoRA: up @ diag(lora_E) @ down, with lora_E (r, 1) and on a convolution down (r, K).

    `start` is for a linear layer that PEFT started from a part S of the base weight. PEFT subtracts S from
    the base, so delta is alpha / r * up @ down - S. S is not in the file but computed from the base weight,
    so the change is exact only on the model that the adapter was trained on. "pissa": the r largest singular
    triples of W. "olora": alpha / r * Q_r R_r, the first r columns of Q and rows of R in W = Q R. PEFT starts
    embeddings in another way, without an S.

    Source: Hu et al., "LoRA" (2106.09685), eq. 3; key names by kohya-ss; convolutions and Tucker by
    Yeh et al., "Navigating Text-To-Image Customization" (2309.14859); Zhang et al., "AdaLoRA" (2303.10512),
    eq. 3; Meng et al., "PiSSA" (2404.02948), eq. 2 to 4; Büyükakyüz, "OLoRA" (2406.01775).
    """

    algorithm: ClassVar[str] = "lora"
    table: ClassVar[Table] = Table(
        {UP: "O r 1*", DOWN: "r I k*"},
        {UP: "O p 1*", MID: "p r k*", DOWN: "r I 1*"},
        {EMBEDDING_DOWN: "r O 1*", EMBEDDING_UP: "I r 1*"},
        {UP: "O r 1*", DOWN: "r I k*", DIAGONAL: "<r>"},
        alpha="scales",
        extras={**BESIDE, BIAS: "<O>, bias, scaled", RESHAPE: "e, number"},
    )
    in_comfy: ClassVar[bool] = True

    lora_up: Tensor | None = None
    lora_down: Tensor | None = None
    lora_mid: Tensor | None = None
    lora_embedding_b: Tensor | None = None
    lora_embedding_a: Tensor | None = None
    lora_b_bias: Tensor | None = None
    reshape_weight: Tensor | None = None
    lora_e: Tensor | None = None
    start: Start | None = None

    @classmethod
    def plain_shape(cls, shapes: Mapping[str, Shape]) -> Shape:
        up, down = shapes.get(UP, ()), shapes.get(DOWN, ())
        rank = up[1] if len(up) > 1 and MID not in shapes else 0
        if rank and down[2:] and rank != down[0] and down[0] % rank == 0:
            raise UnsupportedError("E-lora-grouped-down-on-all-inputs", down=list(down), up=list(up))
        return super().plain_shape(shapes)

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Extent:
        extent = super().shape(shapes)
        if RESHAPE in shapes:
            check_enlargement(extent)
        return extent

    def check_values(self) -> None:
        super().check_values()
        if self.start is not None and len(self.extent) > 2:
            raise LayerError("E-start-not-for-convolution", start=self.start, got=shown(self.extent))
        if self.reshape_weight is None:
            return
        check_enlargement(self.extent)
        larger = self.enlarged()
        if larger is not None and not self.suits(self.shapes, larger):
            raise LayerError(
                "E-reshape-misfits-layer", reshape=RESHAPE, got=shown(larger), expected=shown(self.extent)
            )

    @classmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int, tucker: bool = False) -> Lora:
        """down (and mid with `tucker`) uniform in +-1 / sqrt(fan in) (Kaiming, a = sqrt(5)), up zero.

        `tucker` puts the kernel of a convolution into mid; a kernel of size 1 has no mid.
        """
        generator = torch.Generator().manual_seed(seed)
        kernel, ones = shape[2:], tuple(1 for _ in shape[2:])
        up = torch.zeros(shape[0], rank, *ones)
        if tucker and math.prod(kernel) > 1:
            mid = kaiming((rank, rank, *kernel), generator)
            return cls(
                lora_up=up, lora_down=kaiming((rank, shape[1], *ones), generator), lora_mid=mid, alpha=alpha
            )
        return cls(lora_up=up, lora_down=kaiming((rank, *shape[1:]), generator), alpha=alpha)

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
    ) -> Lora:
        assert rank is not None
        usual = cls.init(shape, rank, scale * rank, seed=seed)
        if "lora_down" not in start:
            return usual
        return replace(usual, lora_down=first(start["lora_down"], rank, shape[1:], seed=seed))

    @classmethod
    def fit(cls, delta: Delta) -> tuple[Offer, ...]:
        """The leading singular triples, sqrt(S) in each factor; with `delta.tucker`, factors with a core.

        Without a core, no layer of the same rank is nearer (Eckart and Young, "The Approximation of One
        Matrix by Another of Lower Rank", 1936). For the core see `maths.decompositions.tucker`.
        """
        if len(delta.shape) < 2:
            return ()
        if not delta.significant:
            return ()
        if delta.tucker and math.prod(delta.shape[2:]) > 1:
            return cls._fit_tucker(delta)
        # Copy: these are slices, which would keep all of the vectors in memory.
        left, values, right = (factor.clone() for factor in delta.triples)
        shape, scale = delta.shape, delta.scale
        ones = (1,) * len(shape[2:])

        def layer_of(index: int) -> Lora:
            rank = index + 1
            up, down = balanced(left[:, :rank], values[:rank] / scale, right[:rank])
            return cls(
                lora_up=up.reshape(len(up), rank, *ones).contiguous(),
                lora_down=down.reshape(rank, *shape[1:]).contiguous(),
                alpha=scale * rank,
            )

        ranks = tuple(range(1, len(values) + 1))
        return (
            Offer(
                algorithm=cls.algorithm,
                ranks=ranks,
                kept=delta.kept,
                parameters=tuple(rank * sum(flat_shape(shape)) for rank in ranks),
                make=layer_of,
                tensors=3,
                held=left.nbytes + right.nbytes,
                start={"lora_down": right},
                # dL/dup = D down^T = U S.
                sums=left.abs().sum(0) * values.to(left),
                complete=delta.complete,
            ),
        )

    @classmethod
    def _fit_tucker(cls, delta: Delta) -> tuple[Offer, ...]:
        left, core, right = (factor.clone() for factor in tucker(*delta.triples, delta.shape))
        outputs, inputs, *kernel = delta.shape
        scale = delta.scale
        ranks = tuple(range(1, len(core) + 1))
        kept = fetched(*(energy(core[:rank, :rank]) for rank in ranks), core[:1, :1].abs().max())
        # Divide the size of the core among all three factors, so that they are about equally large.
        root = float(kept.pop()) ** (1 / 3) or 1.0

        def layer_of(index: int) -> Lora:
            rank = index + 1
            ones = (1,) * len(kernel)
            return cls(
                lora_up=(left[:, :rank] * root).reshape(outputs, rank, *ones),
                lora_mid=core[:rank, :rank] / (root * root * scale),
                lora_down=(right[:rank] * root).reshape(rank, inputs, *ones),
                alpha=scale * rank,
            )

        return (
            Offer(
                algorithm=cls.algorithm,
                ranks=ranks,
                kept=tuple(map(float, kept)),
                parameters=tuple(rank * (outputs + inputs + rank * math.prod(kernel)) for rank in ranks),
                make=layer_of,
                tensors=4,
                held=left.nbytes + core.nbytes + right.nbytes,
                complete=delta.complete,
            ),
        )

    def product(self) -> LowRank:
        if self.lora_embedding_a is not None and self.lora_embedding_b is not None:
            up, down = self.lora_embedding_a.flatten(1).T, self.lora_embedding_b.flatten(1).T
        else:
            assert self.lora_up is not None and self.lora_down is not None
            up, down = self.lora_up.flatten(1), self.lora_down
            if self.lora_mid is not None:
                down = fold_core(self.lora_mid, down)
            if self.lora_e is not None:
                dtype = compute_dtype(down.dtype)
                down = down.flatten(1).to(dtype) * self.lora_e.flatten().to(down.device, dtype)[:, None]
        return LowRank(up=up, down=down.flatten(1), scale=scale(self.alpha, down.shape[0]))

    def of_embedding(self) -> Lora:
        """The same change to an embedding's weight (V, D), in PEFT's factors."""
        if self.lora_up is None or self.lora_down is None:
            return self
        up, down = self.lora_up.flatten(1), self.lora_down.flatten(1)
        return replace(
            self,
            lora_up=None,
            lora_down=None,
            lora_embedding_a=up.T.contiguous(),
            lora_embedding_b=down.T.contiguous(),
        )

    def plain(self, weight: Shape = ()) -> Lora:
        """The same layer with `lora_E`, which only PEFT's AdaLoRA has, multiplied into down.

        Some tools write the factors of a convolution as matrices. ComfyUI reads these, PEFT does not: with
        the weight's shape up is (O, r, 1, ...) and down (r, I, *kernel).
        """
        layer = self if self.lora_e is None else replace(self, lora_down=self.product().down, lora_e=None)
        up, down = layer.lora_up, layer.lora_down
        if not weight or up is None or down is None or layer.lora_mid is not None:
            return layer
        if math.prod(down.shape[1:]) != math.prod(weight[1:]):
            return layer
        up = up.reshape(*up.shape[:2], *(1 for _ in weight[2:]))
        return replace(layer, lora_up=up, lora_down=down.reshape(len(down), *weight[1:]))

    @property
    def _shifts(self) -> bool:
        return self.start is not None and self.lora_embedding_a is None

    @property
    def reads_weight(self) -> bool:
        return super().reads_weight or self._shifts

    def undecomposed(self, weight: Tensor) -> tuple[Additive, ...]:
        forms = self._beside()
        if self.start is None or not self._shifts:
            return forms
        rank = self.rank or 1
        taken = STARTS[self.start](weight.flatten(1), rank, scale(self.alpha, rank))
        return (*forms, replace(taken, scale=-taken.scale))

    @property
    def rows_apart(self) -> bool:
        """False if there is a start, because that needs all rows; else as in `Factored`."""
        return not self._shifts and super().rows_apart

    def bias_additive(self) -> tuple[Additive, ...]:
        added = super().bias_additive() or ()
        if self.lora_b_bias is None:
            return added
        # A low-rank form keeps alpha / r separate, so that it is not rounded to the dtype of the bias.
        ones = torch.ones(1, 1, dtype=self.lora_b_bias.dtype, device=self.lora_b_bias.device)
        factor = scale(self.alpha, self.rank or 1)
        return (LowRank(column(self.lora_b_bias), ones, factor), *added)

    def enlarged(self) -> Shape | None:
        if self.reshape_weight is None:
            return None
        return tuple(int(n) for n in self.reshape_weight.to(torch.int64))


def check_enlargement(extent: Extent) -> None:
    """Raise LayerError if a weight would be enlarged to more than ENLARGED values."""
    values = math.prod(size or 1 for size in extent)
    if values > ENLARGED:
        raise LayerError(
            "E-reshape-too-large", reshape=RESHAPE, values=values, extent=shown(extent), enlarged=ENLARGED
        )
