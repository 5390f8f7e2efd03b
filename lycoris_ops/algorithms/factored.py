"""What LoRA, LoHa and LoKr have in common: DoRA around them, and a sparse remainder beside them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from torch import Tensor

from ..changes.forms import Additive, Dense, LowRank, plus
from ..changes.operators import Diagonal, Sides, tensors_of
from ..errors import LayerError
from ..maths.dora import changed_lengths, dora_factor, learned_changed, learned_extra, lengths, magnitude_axis
from ..maths.recompute import recomputed
from ..maths.shapes import Extent, Rows, Shape, fits, flat_shape, shown
from ..maths.tensors import compute_dtype, fold_core
from ..messages import phrase
from .axes import BIASES
from .base import Layer, axis_of, cut
from .checks import vector
from .training import Trained

if TYPE_CHECKING:
    from typing_extensions import Self

DORA = "dora_scale"
SPARSE = ("bias_indices", "bias_values", "bias_size")
BESIDE = {
    **BIASES,
    DORA: "<d>",
    SPARSE[0]: "c n, number, may be empty",
    SPARSE[1]: "n, may be empty",
    SPARSE[2]: "c, number",
}
"""What may accompany the factors."""
KEPT = 1 << 16
"""The direction V is kept for the backward pass if it has at most this many values. Below this size
recomputing costs more than keeping."""
INT16 = 1 << 16
"""The number of values of int16: a place is stored modulo this."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Factored(Trained):
    """delta = product (+ sparse), or with a DoRA magnitude d: delta = d * V / norm(V) - W.

    V = W + product (+ sparse). `dora_scale` holds d: (O, 1, ...), (O,) or (1, O, 1, ...) for a norm over
    each output, (1, I, 1, ...) for one over each input (see `maths.dora.dora_factor`).

    The sparse remainder is a tensor of shape `bias_size`. It holds `bias_values` (n,) at `bias_indices`
    (dimensions, n), int16, and zero elsewhere. Despite its name it belongs to the weight.

    `dora` chooses the norm: "paper" takes the norm of V. "host" takes the norm of W where d is for outputs,
    as ComfyUI 0.30 does, to reproduce its results.

    Source: Liu et al., "DoRA" (2402.09353), eq. 5; the sparse remainder by the extraction of LyCORIS.
    """

    chosen: ClassVar[frozenset[str]] = frozenset({"dora"})

    dora_scale: Tensor | None = None
    bias_indices: Tensor | None = None
    bias_values: Tensor | None = None
    bias_size: Tensor | None = None
    dora: Literal["paper", "host"] = "paper"

    @classmethod
    def plain_shape(cls, shapes: Mapping[str, Shape]) -> Shape:
        """The shape of the product as the factors alone tell it, without a DoRA magnitude."""
        return cast("Shape", super().shape(shapes))

    @abstractmethod
    def product(self) -> Additive:
        """The product of the factors, alpha / rank included."""

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Extent:
        plain = cls.plain_shape(shapes)
        _check_sparse(shapes)
        outputs, inputs, *kernel = plain
        values = vector(shapes, DORA) if DORA in shapes else outputs
        if values in (outputs, inputs):
            return plain
        # Some files have the kernel folded into the columns: then only the magnitude tells I.
        if kernel or inputs % values:
            raise LayerError(
                "E-dora-magnitude-misfits-layer",
                outputs=outputs,
                inputs=inputs,
                plain=shown(plain),
                got=str(list(shapes[DORA])),
            )
        return (outputs, values, inputs // values)

    @classmethod
    def suits(cls, shapes: Mapping[str, Shape], weight: Sequence[int]) -> bool:
        # A weight of one dimension has no norms to scale.
        magnitude = DORA not in shapes or (len(weight) > 1 and math.prod(shapes[DORA]) in weight[:2])
        return magnitude and fits(cls.plain_shape(shapes), weight)

    def check_values(self) -> None:
        # Computing the places checks them.
        _ = self._places

    def additive(self) -> tuple[Additive, ...] | None:
        return None if self.reads_weight else self._beside()

    def undecomposed(self, weight: Tensor) -> tuple[Additive, ...]:
        """The forms of the change without DoRA."""
        return self._beside()

    def _beside(self) -> tuple[Additive, ...]:
        kept = vars(self)
        if "_forms" in kept:
            return kept["_forms"]
        sparse = self._sparse()
        if sparse is not None:
            return self.product(), sparse
        forms = (self.product(),)
        # A form of the layer's own tensors is the same in each pass.
        own = [id(tensor) for tensor in self.tensors().values()]
        if not torch.compiler.is_compiling() and all(id(tensor) in own for tensor in tensors_of(forms)):
            kept["_forms"] = forms
        return forms

    @property
    def reads_weight(self) -> bool:
        return self.dora_scale is not None

    def of_outputs(self, shape: Sequence[int]) -> bool:
        return self.dora_scale is None or self.magnitude_axis(shape) == 0

    def sides(self, weight: Tensor) -> Sides:
        if self.dora_scale is None:
            return Sides(beside=self.undecomposed(weight))
        plain = self.undecomposed(weight)
        axis = self.magnitude_axis(weight.shape)
        extra = Diagonal(self._extra(weight, plain, axis))
        return Sides(outputs=extra, inside=plain) if axis == 0 else Sides(inputs=extra, inside=plain)

    def dependent(self, weight: Tensor) -> Tensor:
        if self.dora_scale is None:
            return super().dependent(weight)
        # `sides(weight).change(weight)` is equal, but forms the full product a second time.
        return self.changed(weight) - weight

    def changed(self, weight: Tensor) -> Tensor:
        if self.dora_scale is None:
            return super().changed(weight)
        plain, axis = self.undecomposed(weight), self.magnitude_axis(weight.shape)
        if (learned := self._learned(weight, plain)) is not None:
            return learned_changed(*learned, axis)
        whole = plus(weight, plain)
        return whole * self._factor(weight, lengths(whole, axis), axis)

    def _extra(self, weight: Tensor, plain: Sequence[Additive], axis: int) -> Tensor:
        """d / norm - 1, a value for each output or input."""
        # For large weights on a CPU `changed_lengths` is faster: there memory traffic decides.
        forms = weight.numel() <= KEPT or weight.device.type != "cpu"
        if forms and (learned := self._learned(weight, plain)) is not None:
            return learned_extra(*learned, axis)
        return self._factor(weight, self._length(weight, plain, axis), axis).flatten() - 1

    def _learned(
        self, weight: Tensor, plain: Sequence[Additive]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, float] | None:
        """The magnitude, weight, up, down and scale of a LoRA that learns with a DoRA magnitude beside a
        frozen weight; None for other layers."""
        form, magnitude = plain[0], self.dora_scale
        alone = len(plain) == 1 and self.dora == "paper" and not weight.requires_grad
        if not (alone and isinstance(form, LowRank) and form.up.requires_grad):
            return None
        assert magnitude is not None
        return magnitude.to(weight), weight, form.up.to(weight), form.down.to(weight), form.scale

    def _length(self, weight: Tensor, plain: Sequence[Additive], axis: int) -> Tensor:
        """norm(V). A large V is not kept for the backward pass, and not formed for a LoRA that learns."""

        def formed(met: Tensor) -> Tensor:
            return lengths(plus(met, plain), axis)

        if weight.numel() <= KEPT:
            return formed(weight)
        form = plain[0]
        few = len(plain) == 1 and form.work() <= weight.numel()
        if few and isinstance(form, LowRank) and (form.up.requires_grad or form.down.requires_grad):
            up, down = (factor.to(weight) for factor in (form.up, form.down))
            return changed_lengths(weight, up * form.scale, down, axis)
        return recomputed(formed, weight)

    def _factor(self, weight: Tensor, length: Tensor, axis: int) -> Tensor:
        """d / norm, to be multiplied with V; `length` is the norm of V."""
        assert self.dora_scale is not None
        return dora_factor(
            self.dora_scale, lengths(weight, 0) if self.dora == "host" and axis == 0 else length
        )

    def fault_in_comfy(self) -> str | None:
        if self.dora_scale is not None and self.magnitude_axis() == 0:
            return "divides by the norm of the unchanged weight, where the magnitude is for outputs"
        if self.bias_indices is not None:
            return "leaves the sparse remainder out"
        return super().fault_in_comfy()

    def magnitude_axis(self, shape: Sequence[int] | None = None) -> int:
        """0 where the DoRA magnitude is for the outputs of the weight, 1 where it is for the inputs.

        `shape` is that of the weight; unless given, it is the shape of the change. Raises LayerError where
        the magnitude fits neither.
        """
        assert self.dora_scale is not None
        magnitude = tuple(self.dora_scale.shape)
        met = [size or 1 for size in self.extent] if shape is None else shape
        axis = magnitude_axis(magnitude, met)
        if axis is None:
            raise LayerError(
                "E-dora-magnitude-misfits-weight",
                got=str(list(magnitude)),
                expected=" or ".join(phrase("R-values-2", size=size) for size in met[:2]),
            )
        return axis

    def decomposed(self, weight: Tensor, axis: int) -> Self:
        """The layer with the DoRA magnitude at which a product of zero changes nothing.

        It is the norm of each output (axis 0) or each input (axis 1) of the float32 or float64 weight that
        the layer is for.
        """
        return replace(self, dora_scale=lengths(weight, axis))

    def shrunk(self, ratio: float, weight: Tensor) -> Self:
        """As in `Layer`. With DoRA, the magnitude moves closer to the norm of the weight by `ratio` too."""
        layer = super().shrunk(ratio, weight)
        if self.dora_scale is None:
            return layer
        start = lengths(weight, self.magnitude_axis(weight.shape)).reshape(self.dora_scale.shape)
        return replace(layer, dora_scale=start + ratio * (self.dora_scale - start))

    @property
    def rows_apart(self) -> bool:
        """False with a DoRA magnitude for inputs, whose norms are over all outputs."""
        return self.dora_scale is None or self.magnitude_axis() == 0

    def row_axes(self) -> Mapping[str, int] | None:
        axes = super().row_axes()
        return axes if axes is None or self.dora_scale is None else {**axes, DORA: axis_of(self.dora_scale)}

    def column_axes(self) -> Mapping[str, int] | None:
        """None with a DoRA magnitude or a sparse remainder."""
        return super().column_axes() if self.bias_size is None else None

    def rows(self, *ranges: Rows) -> Layer:
        layer = super().rows(*ranges)
        return layer if self.bias_size is None else layer.with_tensors(self._sparse_rows(ranges))

    def _sparse_rows(self, ranges: Sequence[Rows]) -> dict[str, Tensor]:
        """The tensors of the sparse remainder for these rows alone, by field."""
        remainder, values, size = self._sparse(), self.bias_values, self.bias_size
        assert remainder is not None and values is not None and size is not None
        _, *rest = (int(n) for n in _unwrapped(size))
        matrix = cut(remainder.values, 0, ranges)
        matrix = matrix.reshape(len(matrix), *rest)
        return {
            "bias_indices": matrix.nonzero().T.contiguous(),
            "bias_values": matrix[matrix != 0].to(values.dtype),
            "bias_size": torch.tensor(matrix.shape),
        }

    def _sparse(self) -> Dense | None:
        """The sparse remainder as a matrix; values at one place add up."""
        if self.bias_size is None:
            # Before `_places`: the lock of `cached_property` on Python 3.11 breaks a graph of torch.compile.
            return None
        values, indices = self.bias_values, self._places
        if values is None or indices is None:
            return None
        row, column, shape = indices
        matrix = torch.zeros(shape, dtype=compute_dtype(values.dtype), device=values.device)
        return Dense(matrix.index_put((row, column), values.to(matrix.dtype), accumulate=True))

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor, tuple[int, int]] | None:
        """Rows (n,) and columns (n,) of the sparse values, and the shape (O, K) of the matrix they are in.

        None where the layer has no sparse remainder. Raises LayerError where a place is outside the
        matrix, or the matrix is not of the layer's size.
        """
        indices, size = self.bias_indices, self.bias_size
        if indices is None or size is None:
            return None
        shape, coordinates = _unwrapped(size), _unwrapped(indices)
        plain = flat_shape([size or 1 for size in self.extent])
        lengths = [int(n) for n in shape]
        if min(lengths, default=0) < 1 or flat_shape(lengths) != plain:
            raise LayerError(
                "E-sparse-size-misfits-layer", sparse=SPARSE[2], got=str(lengths), expected=str(list(plain))
            )
        outside = ((coordinates < 0) | (coordinates >= shape[:, None])).any(0)
        if outside.any():
            raise LayerError(
                "E-sparse-points-outside",
                coordinates=SPARSE[0],
                extent=SPARSE[2],
                outside=int(outside.sum()),
                numbers=outside.numel(),
                coordinate=[int(n) for n in coordinates[:, outside.nonzero()[0, 0]]],
                lengths=lengths,
            )
        flat = torch.zeros_like(coordinates[0])
        for axis, length in enumerate(lengths):
            flat = flat * length + coordinates[axis]
        return flat // plain[1], flat % plain[1], plain


def pair_of(left: Tensor, right: Tensor, core: Tensor | None) -> tuple[Tensor, Tensor]:
    """Two factors as (O, r) and (r, K): with a Tucker core, the left one is stored transposed."""
    if core is None:
        return left.flatten(1), right.flatten(1)
    return left.flatten(1).T, fold_core(core, right).flatten(1)


def _check_sparse(shapes: Mapping[str, Shape]) -> None:
    """Raise LayerError where a tensor of a sparse remainder is missing."""
    present = [name for name in SPARSE if name in shapes]
    if 0 < len(present) < len(SPARSE):
        raise LayerError("E-sparse-incomplete", got=", ".join(present), expected=", ".join(SPARSE))


def _unwrapped(numbers: Tensor) -> Tensor:
    """A copy as int64; places above 32767, which int16 has wrapped to negative numbers, are restored."""
    wide = numbers.to(torch.int64, copy=True)
    return wide % INT16 if numbers.dtype == torch.int16 else wide
