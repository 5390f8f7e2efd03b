"""What LoRA, LoHa and LoKr have in common: DoRA around them, and a sparse remainder beside them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..algebra import Extent, Shape, dora_factor, flat_shape, magnitude_axis
from ..errors import LayerError
from ..forms import Additive, Sparse
from ..sides import Diagonal, Sides
from .base import Layer, add_up, show

DORA = "dora_scale"
SPARSE = ("bias_indices", "bias_values", "bias_size")
INT16 = 1 << 16


@dataclass(frozen=True, eq=False, kw_only=True)
class Factored(Layer):
    """delta = product (+ sparse), or with a DoRA magnitude d: delta = d * V / norm(V) - W, V = W + product.

    `dora_scale` is (O, 1, ...), (O,) or (1, O, 1, ...) for a norm over each output, (1, I, 1, ...) for one
    over each input (see `algebra.dora_factor`). The sparse remainder is `bias_values` at `bias_indices`
    (dimensions, n), int16, of a tensor of shape `bias_size`; despite its name it belongs to the weight.

    `dora` chooses the norm: "paper" that of V; "host" that of W on the output axis, as ComfyUI 0.30
    computes it, for results that were made with it.

    Source: Liu et al., "DoRA" (2402.09353), eq. 5; the sparse remainder by the extraction of LyCORIS.
    """

    extras: ClassVar[frozenset[str]] = Layer.extras | {DORA, *SPARSE}
    scaled_by_alpha: ClassVar[bool] = True

    dora_scale: Tensor | None = None
    bias_indices: Tensor | None = None
    bias_values: Tensor | None = None
    bias_size: Tensor | None = None
    dora: Literal["paper", "host"] = "paper"

    @classmethod
    @abstractmethod
    def plain_shape(cls, shapes: Mapping[str, Shape]) -> Shape:
        """The shape of the product alone."""

    @abstractmethod
    def product(self) -> Additive:
        """The product of the factors, alpha / rank included."""

    @abstractmethod
    def cut(self, start: int, stop: int) -> Factored | None:
        """The layer with the factors of some rows alone; None where these are not factors any more."""

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Extent:
        plain = cls.plain_shape(shapes)
        if DORA in shapes:
            values = math.prod(shapes[DORA])
            # The kernel is not known where it is folded into the columns.
            if values != plain[0] and (not values or flat_shape(plain)[1] % values):
                raise LayerError(
                    "a DoRA magnitude has neither the outputs nor the inputs of its layer",
                    got=str(list(shapes[DORA])),
                    expected=f"{plain[0]} or {plain[1]} values for {show(plain)}",
                )
        present = [name for name in SPARSE if name in shapes]
        if present and len(present) < len(SPARSE):
            raise LayerError(
                "a sparse remainder is incomplete", got=", ".join(present), expected=", ".join(SPARSE)
            )
        return plain

    def additive(self) -> tuple[Additive, ...] | None:
        if self.dora_scale is not None:
            return None
        sparse = self._sparse()
        return (self.product(),) if sparse is None else (self.product(), sparse)

    @property
    def reads_weight(self) -> bool:
        return self.dora_scale is not None

    def sides(self, weight: Tensor) -> Sides:
        assert self.dora_scale is not None
        plain, _, factor = self._decomposed(weight)
        if magnitude_axis(self.dora_scale.shape, weight.shape) == 0:
            return Sides(outputs=Diagonal(factor.flatten() - 1), inside=plain)
        return Sides(inputs=Diagonal(factor.flatten() - 1), inside=plain)

    def dependent(self, weight: Tensor) -> Tensor:
        # The same as by `sides`, which would form the full product once more.
        _, direction, factor = self._decomposed(weight)
        return direction * factor - weight

    def _decomposed(self, weight: Tensor) -> tuple[tuple[Additive, ...], Tensor, Tensor]:
        """The product, V, and d / norm of it."""
        assert self.dora_scale is not None
        plain = replace(self, dora_scale=None).additive()
        assert plain is not None
        direction = weight + add_up(plain, weight.dtype, weight.device).reshape(weight.shape)
        outputs = magnitude_axis(self.dora_scale.shape, weight.shape) == 0
        norm_of = weight if self.dora == "host" and outputs else direction
        return plain, direction, dora_factor(self.dora_scale, norm_of)

    def rows(self, start: int, stop: int) -> Layer:
        magnitude = self.dora_scale
        if magnitude is None or (magnitude.ndim > 1 and magnitude.shape[0] == 1):
            return super().rows(start, stop)
        factors = self.cut(start, stop)
        if factors is None or self.bias_size is not None:
            return super().rows(start, stop)
        return replace(factors, dora_scale=magnitude[start:stop], diff_b=None)

    def _sparse(self) -> Sparse | None:
        indices, values, size = self.bias_indices, self.bias_values, self.bias_size
        if indices is None or values is None or size is None:
            return None
        shape = [int(n) for n in size]
        columns = math.prod(shape[1:])
        # int16 wraps above 32767.
        places = indices.to(torch.int64) % INT16 if indices.dtype == torch.int16 else indices.to(torch.int64)
        flat = torch.zeros_like(places[0])
        for axis, length in enumerate(shape):
            flat = flat * length + places[axis]
        return Sparse(flat // columns, flat % columns, values, (shape[0], columns))
