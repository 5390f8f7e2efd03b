"""What LoRA, LoHa and LoKr have in common: DoRA around them, and a sparse remainder beside them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..changes.forms import Additive, Sparse
from ..changes.operators import Diagonal, Sides
from ..errors import LayerError
from ..maths.tensors import Extent, Shape, dora_factor, fits, flat_shape, magnitude_axis
from .base import Layer, add_up, agree, shapes_of, show

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
        _check_sparse(shapes)
        outputs, inputs, *kernel = plain
        values = math.prod(shapes[DORA]) if DORA in shapes else outputs
        if values in (outputs, inputs):
            return plain
        # The kernel may be folded into the columns: then the magnitude tells the inputs.
        if kernel or not values or inputs % values:
            raise LayerError(
                "a DoRA magnitude has neither the outputs nor the inputs of its layer",
                got=str(list(shapes[DORA])),
                expected=f"{outputs} or {inputs} values for {show(plain)}",
            )
        return (outputs, values, inputs // values)

    @classmethod
    def suits(cls, shapes: Mapping[str, Shape], weight: Sequence[int]) -> bool:
        magnitude = DORA not in shapes or math.prod(shapes[DORA]) in weight[:2]
        return magnitude and fits(cls.plain_shape(shapes), weight)

    def check_values(self) -> None:
        self._sparse()

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
        shape, places = _unwrapped(size), _unwrapped(indices)
        plain = flat_shape(self.plain_shape(shapes_of(self.dump())))
        lengths = [int(n) for n in shape]
        if min(lengths, default=0) < 1 or flat_shape(lengths) != plain:
            raise LayerError(
                f"{SPARSE[2]} is not the size of the layer", got=str(lengths), expected=str(list(plain))
            )
        outside = ((places < 0) | (places >= shape[:, None])).any(0)
        if outside.any():
            raise LayerError(
                f"{SPARSE[0]} points outside {SPARSE[2]}",
                got=f"{int(outside.sum())} of {outside.numel()} places, such as "
                f"{[int(n) for n in places[:, outside.nonzero()[0, 0]]]}",
                expected=f"places in {lengths}",
            )
        flat = torch.zeros_like(places[0])
        for axis, length in enumerate(lengths):
            flat = flat * length + places[axis]
        return Sparse(flat // plain[1], flat % plain[1], values, plain)


def _check_sparse(shapes: Mapping[str, Shape]) -> None:
    """Raise LayerError where the tensors of a sparse remainder are not all there, or of other sizes."""
    present = [name for name in SPARSE if name in shapes]
    if not present:
        return
    if len(present) < len(SPARSE):
        raise LayerError(
            "a sparse remainder is incomplete", got=", ".join(present), expected=", ".join(SPARSE)
        )
    indices, values, size = (shapes[name] for name in SPARSE)
    if len(indices) != 2 or len(values) != 1 or len(size) != 1:
        raise LayerError(
            "the tensors of a sparse remainder have unusable shapes",
            got=", ".join(f"{name} {list(shapes[name])}" for name in SPARSE),
            expected=f"{SPARSE[0]} [dimensions, n], {SPARSE[1]} [n], {SPARSE[2]} [dimensions]",
        )
    agree("numbers of dimensions", (SPARSE[0], indices[0]), (SPARSE[2], size[0]))
    agree("numbers of values", (SPARSE[0], indices[1]), (SPARSE[1], values[0]))


def _unwrapped(numbers: Tensor) -> Tensor:
    """As int64; int16 wraps above 32767."""
    wide = numbers.to(torch.int64)
    return wide % INT16 if numbers.dtype == torch.int16 else wide
