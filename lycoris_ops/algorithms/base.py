"""The contract that every adapter algorithm fulfils."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from ..changes.forms import Additive, Dense, add_up, plus
from ..changes.operators import Sides
from ..errors import LayerError, UnsuitedError
from ..maths.shapes import Extent, Rows, Shape, fits, shown
from ..maths.tensors import compute_dtype, is_finite, shaped, times
from ..messages import Phrase, phrase
from .axes import ALPHA, Table, Variant, field_of
from .checks import (
    MOST_DIMENSIONS,
    a_layer,
    agree,
    check_factor,
    check_number,
    check_work,
    number,
    scale,
    vector,
)

if TYPE_CHECKING:
    from typing_extensions import Self


def option(default: Any, suits: Callable[[Any], bool], expected: str) -> Any:
    """A field for an option that is not a choice among words.

    `suits` tests a value; `expected` says what is allowed.
    """
    return field(default=default, metadata={"suits": suits, "expected": expected})


Parameter = Literal["weight", "bias"]
"""The parameter of a module that a layer changes."""


@dataclass(frozen=True)
class Change:
    """The change that a layer makes to a weight and its bias at strength 1."""

    delta: Tensor | None
    """Added to the weight, in its shape; None where the layer changes no weight."""
    bias: Tensor | None = None
    """Added to the bias (O,); None where the layer changes no bias."""


IGNORED = "ignores it"
"""See `Layer.fault_in_comfy`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer(ABC):
    """The named tensors of one adapted layer, and the change that they define.

    A subclass declares:

    - `table`, the axes of each tensor, and a field for each, with the name that `field_of` makes of the key
      suffix;
    - its formula: `additive`, or `sides` where the change depends on the weight;
    - `algorithm` and `in_comfy`.

    Fields of other types are options, which no file holds. `alpha` is None where the file has none; the
    scale is then 1.
    """

    algorithm: ClassVar[str]
    table: ClassVar[Table]
    """The axes of the tensors, and what follows from them: see `axes`."""
    in_comfy: ClassVar[bool]
    """Whether ComfyUI's own loader reads layers of this kind. `fault_in_comfy` answers for a single layer."""
    chosen: ClassVar[frozenset[str]] = frozenset()
    """Options that only choose how to compute with the same tensors. The user gives them, no file does."""
    fresh_rate: ClassVar[float] = 1.0
    """The learning rate that suits layers fresh from `init`, as a multiple of LoRA's."""

    alpha: float | None = None
    diff_b: Tensor | None = None
    set_bias: Tensor | None = None
    """The values (O,) that the bias has at strength 1, before `bias_additive` is added to it."""

    # What suffixes and shapes tell.

    @classmethod
    def accepts(cls, tensors: Mapping[str, Tensor] | Mapping[str, Shape]) -> bool:
        """Whether these suffixes are one variant of the kind, with any extras, and the number of dimensions
        is right where it tells the kind from another."""
        table = cls.table
        if not table.has_names(tensors.keys()):
            return False
        if table.dimensions is None:
            return True
        return len(shapes_of(tensors)[next(iter(table.variants[0]))]) == table.dimensions

    @classmethod
    def is_told(cls, names: Collection[str]) -> bool:
        """Whether tensors with these suffixes fully describe a layer, without a configuration of PEFT."""
        return ALPHA in names or not cls.table.scaled_by_alpha

    @classmethod
    def variant_of(cls, shapes: Mapping[str, Shape]) -> Variant:
        """The variant that tensors of these shapes have."""
        return cls.table.variant_of(shapes)

    @classmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Extent:
        """The shape (O, I, *kernel) or (O, K) of the change, from the tensors' shapes alone.

        None stands for a size that the layer leaves open; () means that the weight is not changed. Where
        shapes do not tell outputs from inputs, IA3 returns (n,), and its `suits` accepts either.
        Raises LayerError where the tensors contradict each other. The shapes have passed `check_shapes`.
        """
        return cls.variant_of(shapes).extent(shapes)

    @classmethod
    def suits(cls, shapes: Mapping[str, Shape], weight: Sequence[int]) -> bool:
        """Whether tensors of these shapes may change a weight of that shape, as far as shapes tell."""
        return fits(cls.shape(shapes), weight)

    @classmethod
    def made_for(cls, shapes: Mapping[str, Shape]) -> str:
        """The weights that tensors of these shapes may change, in words for messages."""
        return shown(cls.shape(shapes))

    @classmethod
    def bias_shape(
        cls, shapes: Mapping[str, Shape], options: Mapping[str, Any] | None = None
    ) -> Extent | None:
        """The shape (O,) of the change of the bias, None where there is none. (None,) fits every bias.

        `options` are the layer's options by field, where shapes alone do not tell (`feedforward` of IA3).
        """
        sizes = [(name, vector(shapes, name)) for name in shapes if field_of(name) in cls.table.biases]
        for size in sizes[1:]:
            agree("sizes", sizes[0], size)
        return (sizes[0][1],) if sizes else None

    @classmethod
    def rank_of(cls, shapes: Mapping[str, Shape]) -> int | None:
        """The rank, from the tensors' shapes alone; None where nothing is factored.

        For a rotation it is the size of a block.
        """
        return cls.variant_of(shapes).rank(shapes)

    @classmethod
    def check_shapes(cls, shapes: Mapping[str, Shape]) -> None:
        """Raise LayerError where tensors of these shapes cannot be a layer of this kind.

        This comes before any other use of a layer's shapes or tensors. Each tensor must have 1 to
        MOST_DIMENSIONS dimensions, none of size 0; a number may have no dimensions; `shape` and `bias_shape`
        must find no contradiction; and the work on the way to the change must be in proportion, see
        `checks.WORK`.
        """
        for name, found in shapes.items():
            least = 0 if name in cls.table.numbers else 1
            if not least <= len(found) <= MOST_DIMENSIONS:
                raise LayerError(
                    "E-shape-unusable-range",
                    name=name,
                    least=least,
                    most_dimensions=MOST_DIMENSIONS,
                    got=Phrase("R-dimensions", {"count": len(found)}) if found else "[]",
                )
            if name not in cls.table.may_be_empty and 0 in found:
                raise LayerError("E-tensor-empty", name=name, got=str(list(found)))
            if name in cls.table.single and math.prod(found) != 1:
                raise LayerError("E-tensor-of-several-numbers", name=name, got=str(list(found)))
        extent = cls.shape(shapes)
        cls.bias_shape(shapes)
        held = sum(math.prod(found) for found in shapes.values())
        check_work(
            cls.algorithm, cls.variant_of(shapes).work(shapes), math.prod(size or 1 for size in extent), held
        )

    # A layer's own tensors.

    def with_bias_change(self, change: Tensor) -> Self:
        """The same layer with `change` (O,) as its change of the bias, in place of one that it has."""
        return replace(self, **{self.table.biases[0]: change})

    def multiplied(self, factor: float) -> Self:
        """The layer whose change is `factor` times as large: one factor of each product is multiplied.

        That factor becomes float32 where its own dtype does not hold the result exactly. Where the formula
        has a factor twice, alpha is multiplied in its place. Raises LayerError where the layer has no such
        factor: its effect is not proportional to any of its tensors.
        """
        if self.set_bias is not None or not self.proportional:
            raise LayerError("E-kind-not-scalable", algorithm=a_layer(self.algorithm), factor=f"{factor:g}")
        held = self.tensors()
        twice, alpha = self.table.twice, self.alpha
        firsts = [factors[0] for factors in self._factors_held() if twice.isdisjoint(factors)]
        fields = (*firsts, *(name for name in self.table.biases if name in held))
        if twice:
            alpha = factor * (self.rank or 1 if alpha is None else alpha)
        changed = {name: times(held[name], factor) for name in fields}
        ones = self.table.around_one
        changed |= {name: 1 + factor * (held[name].float() - 1) for name in ones if name in held}
        made = self.with_tensors(changed)
        return replace(made, alpha=alpha) if twice else made

    @property
    def proportional(self) -> bool:
        """Whether the change is proportional to its products, whatever the weight is."""
        return self.additive() is not None or (self.table.scaled_by_alpha and not self.reads_weight)

    def _factors_held(self) -> list[list[str]]:
        """The fields of each product's factors, as far as the layer has them."""
        held = self.tensors()
        products = (*self.variant.products, *self.table.beside)
        found = ([name for name in factors if name in held] for factors in products)
        return [factors for factors in found if factors]

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], options: Mapping[str, Any] | None = None) -> Self:
        """The layer that these suffix-named tensors describe, with options that no tensor holds.

        Raises LayerError where a suffix is unknown, one is missing, shapes disagree, a factor has a dtype
        outside `checks.FACTOR_DTYPES` or holds NaN or infinity, or `check_values` finds a wrong value. The
        `key` of an error about one tensor is its suffix.
        """
        shapes = shapes_of(tensors)
        if not cls.accepts(shapes):
            raise LayerError(
                "E-not-this-kind",
                algorithm=a_layer(cls.algorithm),
                got=", ".join(sorted(tensors)),
                expected=" or ".join(", ".join(sorted(variant)) for variant in cls.table.variants),
            )
        cls.check_shapes(shapes)
        for name, tensor in tensors.items():
            (check_number if name in cls.table.numbers else check_factor)(name, tensor)
        held: dict[str, Any] = {field_of(name): tensor for name, tensor in tensors.items()}
        if ALPHA in held:
            held[ALPHA] = number(ALPHA, tensors[ALPHA])
        layer = cls(**held, **(options or {}))
        for one in fields(cls) if options else ():
            value, suits = getattr(layer, one.name), one.metadata.get("suits")
            if suits is not None and not suits(value):
                raise LayerError(
                    "E-option-value-unusable",
                    name=one.name,
                    got=_brief(value),
                    expected=one.metadata["expected"],
                )
        layer.check_values()
        return layer

    def check_values(self) -> None:
        """Raise LayerError for an impossible value in a tensor that says how others are read.

        Such tensors are flags, places and sizes: `on_input`, `bias_indices`, `reshape_weight`. Alpha is
        checked where it is used, see `scale`.
        """
        return

    def dump(self) -> dict[str, Tensor]:
        """The suffix-named tensors; `load` of them gives this layer back, bit for bit."""
        held = self.tensors()
        tensors = {suffix: held[field] for suffix, field in self.table.fields.items() if field in held}
        if self.alpha is not None:
            alpha = torch.tensor(self.alpha, dtype=torch.float32)
            # float64 only where float32 would round alpha: `load` must give back the very same.
            exact = alpha.item() == self.alpha
            tensors[ALPHA] = alpha if exact else torch.tensor(self.alpha, dtype=torch.float64)
        return tensors

    def shrunk(self, ratio: float, weight: Tensor) -> Self:
        """The layer whose change of this float32 or float64 weight is `ratio` (0 to 1) times as large.

        Exact where the change is a product of factors, and to first order for rotations. Each of n factors is
        multiplied by ratio^(1/n), so that they stay balanced. Raises LayerError for a kind that does not say
        which factors its change has.
        """
        if not self.table.products:
            raise LayerError("E-change-not-shrinkable", algorithm=a_layer(self.algorithm))
        held = self.tensors()
        twice, made = self.table.twice, dict[str, Tensor]()
        for factors in self._factors_held():
            share = ratio ** (1 / (len(factors) + len(twice.intersection(factors))))
            made |= {name: held[name] * share for name in factors}
        made |= {name: held[name] * ratio for name in self.table.biases if name in held}
        made |= {name: 1 + ratio * (held[name] - 1) for name in self.table.around_one if name in held}
        return self.with_tensors(made)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the layer, by its field."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def with_tensors(self, tensors: Mapping[str, Tensor | None]) -> Self:
        """The same layer with these tensors in place of its own, by field."""
        return replace(self, **tensors)

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the tensors, by suffix."""
        # Kept by hand, as `extent` is: `cached_property` takes a lock on Python 3.11, which torch.compile
        # cannot trace.
        kept = vars(self)
        if "_shapes" not in kept:
            held, named = self.tensors(), self.table.fields
            found = {suffix: tuple(held[field].shape) for suffix, field in named.items() if field in held}
            kept["_shapes"] = found if self.alpha is None else {**found, ALPHA: ()}
        return kept["_shapes"]

    @property
    def variant(self) -> Variant:
        """The variant that the layer's tensors have."""
        return self.variant_of(self.shapes)

    @property
    def rank(self) -> int | None:
        """The rank; None where nothing is factored."""
        return self.rank_of(self.shapes)

    @property
    def extent(self) -> Extent:
        """The shape of the change as `shape` gives it; more exact where the tensors' values tell more."""
        kept = vars(self)
        if "_extent" not in kept:
            kept["_extent"] = self.shape(self.shapes)
        return kept["_extent"]

    @property
    def bias_extent(self) -> Extent | None:
        """The shape of the change of the bias, None where there is none."""
        return self.bias_shape(self.shapes, vars(self))

    def check_fit(self, shape: Sequence[int]) -> None:
        """Raise LayerError unless the change can be added to a weight of this shape."""
        # Training with a rebuilt weight asks this in each pass, so the last shape that fitted is kept.
        kept, met = vars(self), tuple(shape)
        if kept.get("_fits") == met:
            return
        if not self.suits(self.shapes, shape):
            raise self.misfit(shape, self.made_for(self.shapes))
        kept["_fits"] = met

    def misfit(self, shape: Sequence[int], made_for: str) -> LayerError:
        """The error for a weight of this shape; `made_for` says what the layer fits."""
        return LayerError(
            "E-kind-does-not-fit-weight",
            algorithm=a_layer(self.algorithm),
            got=made_for,
            expected=str(list(shape)),
        )

    def fault_in_comfy(self) -> str | None:
        """How ComfyUI's own loader misreads the layer; None where it does not.

        Either IGNORED, or the end of a sentence that begins with `ComfyUI's own loader`.
        """
        return None if self.in_comfy else IGNORED

    # The change, stated once.

    def additive(self) -> tuple[Additive, ...] | None:
        """The change at strength 1 as a sum of factored forms; None where it depends on the weight.

        alpha / rank is applied here, nowhere else.
        """
        return None

    def bias_additive(self) -> tuple[Additive, ...] | None:
        """The change of the bias at strength 1 as a sum of forms (O, 1); () where it is not changed.

        None where the layer multiplies the bias as it multiplies the rows of the weight: then `sides` of
        the bias gives its change.
        """
        biases = self.table.biases
        added: Tensor | None = getattr(self, biases[0]) if biases else None
        return () if added is None else (Dense(column(added)),)

    def sides(self, weight: Tensor) -> Sides:
        """The change at strength 1 as operators on a float32 or float64 weight, where `additive` is None.

        Where `reads_weight` is false, only shape, dtype and device of the weight are used.
        """
        raise NotImplementedError(f"{self.algorithm} states neither its forms nor its operators")

    @property
    def reads_weight(self) -> bool:
        """Whether `sides` depends on the weight's values."""
        return False

    def of_outputs(self, shape: Sequence[int]) -> bool:
        """Whether `sides` of a weight of this shape is known to have no operator on inputs."""
        return False

    def dependent(self, weight: Tensor) -> Tensor:
        """The change at strength 1 of a float32 or float64 weight, where `additive` is None."""
        return self.sides(weight).change(weight)

    def changed(self, weight: Tensor) -> Tensor:
        """A float32 or float64 weight with the change at strength 1, whose values are not checked."""
        additive = self.additive()
        return self.sides(weight).changed(weight) if additive is None else plus(weight, additive)

    def plain(self, weight: Shape = ()) -> Layer:
        """The same layer in the tensors that every tool reads: without the third factor of PEFT's AdaLoRA.

        LoRA's factors get the dimensions of the weight, if its shape is given.
        """
        return self

    def like(self, other: Layer) -> Layer:
        """The same layer in the form of another one, for kinds that have several forms."""
        return self

    def enlarged(self) -> Shape | None:
        """The shape to which the weight is enlarged with zeros first; None where it keeps its own."""
        return None

    # What derives from the change.

    def forms(self, parameter: Parameter = "weight") -> tuple[Form, ...]:
        """The factored forms of the change, or one `Dependent` where it depends on the weight or bias."""
        if parameter == "bias" and self.set_bias is not None:
            return (Dependent(self, parameter),)
        additive = self.additive() if parameter == "weight" else self.bias_additive()
        return (Dependent(self, parameter),) if additive is None else additive

    def delta(self, weight: Tensor) -> Tensor:
        """The change of `weight` at strength 1, in its shape, float32 (float64 for a float64 weight).

        Raises LayerError where the layer does not fit the weight's shape, or the change overflows.
        """
        self.check_fit(weight.shape)
        return change_of(self.forms(), weight)

    def change(self, weight: Tensor, bias: Tensor | None = None) -> Change:
        """The change at strength 1 of a weight and of the bias beside it.

        `bias` (O,) is the value of the bias, on which its change may depend; zeros unless given. Raises
        LayerError as `delta` does.
        """
        found = self.unchecked(weight, bias)
        check_each((found.delta, weight), (found.bias, bias))
        return found

    def unchecked(self, weight: Tensor, bias: Tensor | None = None) -> Change:
        """`change`, whose values are not checked."""
        beside = self.forms("bias")
        if beside and not fits(self.bias_extent or (), weight.shape[:1]):
            raise self.misfit(weight.shape[:1], shown(self.bias_extent or ()))
        if self.extent:
            self.check_fit(weight.shape)
        met = weight.new_zeros(weight.shape[0]) if bias is None else bias
        return Change(
            delta=formed(self.forms(), weight) if self.extent else None,
            bias=formed(beside, met) if beside else None,
        )

    @property
    def rows_apart(self) -> bool:
        """Whether no output depends on another, so that rows can be cut out."""
        return self.additive() is not None

    def row_axes(self) -> Mapping[str, int] | None:
        """The fields that hold a value or a vector for each output, with the axis that counts the outputs.

        A tensor that is not named serves every output. The result is None where outputs depend on each
        other, so that no rows can be cut out.
        """
        return self._axes("O") if self.rows_apart else None

    def column_axes(self) -> Mapping[str, int] | None:
        """As `row_axes`, with the axis that counts the inputs of a weight without a kernel."""
        counted = self.variant.letters.intersection(self.variant.sides["I"])
        return self._axes("I") if self.additive() is not None and counted else None

    def _axes(self, letter: str) -> dict[str, int]:
        held, named = self.tensors(), self.variant.axes_of(letter)
        return {
            name: axis_of(held[name]) if axis < 0 else axis for name, axis in named.items() if name in held
        }

    def rows(self, *ranges: Rows) -> Layer:
        """The layer that has only these rows of the weight and of the bias, one range after the other.

        Raises LayerError where these rows depend on others.
        """
        axes = self.row_axes()
        if axes is None:
            raise self._inseparable(ranges)
        held = self.tensors()
        biases = {name: cut(held[name].flatten(), 0, ranges) for name in self.table.biases if name in held}
        return self._cut("O", axes, ranges).with_tensors(biases)

    def columns(self, columns: Rows) -> Layer:
        """The layer that has only these columns of a weight without a kernel, and all of the bias.

        Raises LayerError where these columns depend on others, or the kind has no cut by columns.
        """
        axes = self.column_axes()
        if axes is None:
            raise LayerError(
                "E-kind-not-cut-by-columns",
                algorithm=a_layer(self.algorithm),
                first=columns[0],
                end=columns[1],
            )
        return self._cut("I", axes, [columns])

    def _cut(self, side: str, axes: Mapping[str, int], ranges: Sequence[Rows]) -> Layer:
        """The layer with ranges of the axes of a side, O or I. An axis of blocks is cut by whole blocks."""
        held, letters = self.tensors(), self.variant.sides[side]
        cuts = {name: cut(held[name], axis, ranges) for name, axis in axes.items()}
        if len(letters) == 1:
            return self.with_tensors(cuts)
        blocks = blocks_of(ranges, self.variant.size(letters[1], self.shapes))
        if blocks is None:
            raise self._inseparable(ranges)
        return self.with_tensors(
            cuts | {name: cut(held[name], axis, blocks) for name, axis in self._axes(letters[0]).items()}
        )

    def _inseparable(self, ranges: Sequence[Rows]) -> LayerError:
        """The error for rows that cannot be cut out, because they depend on others."""
        return LayerError(
            "E-kind-not-cut-by-rows",
            algorithm=a_layer(self.algorithm),
            got=" and ".join((phrase("R-rows", start=start, stop=stop) for start, stop in ranges)),
        )


@dataclass(frozen=True)
class Dependent:
    """A change that depends on the weight or bias it is added to: only the layer itself can compute it.

    `file` and `key` say where the layer is from, for errors that show only when the change is computed.
    """

    layer: Layer
    parameter: Parameter = "weight"
    file: str | None = None
    key: str | None = None

    def change(self, met: Tensor) -> Tensor:
        """The change at strength 1 of a float32 or float64 weight or bias."""
        layer = self.layer
        if self.parameter == "weight" or layer.set_bias is None:
            return layer.dependent(met)
        change = layer.set_bias.flatten().to(met) - met
        added = layer.bias_additive() or ()
        return change + add_up(added, met.dtype, met.device).flatten() if added else change


Form = Additive | Dependent


def independent(forms: Sequence[Form]) -> tuple[Additive, ...] | None:
    """The forms, unless one depends on the weight or bias; then None."""
    additive = tuple(form for form in forms if not isinstance(form, Dependent))
    return additive if len(additive) == len(forms) else None


def change_of(forms: Sequence[Form], met: Tensor) -> Tensor:
    """The sum of a layer's forms as the change of `met`, a weight or bias, in its shape.

    In float32, or float64 where `met` is float64. Raises LayerError where it overflows.
    """
    return checked(formed(forms, met), met)


def formed(forms: Sequence[Form], met: Tensor) -> Tensor:
    """`change_of`, whose values are not checked."""
    dtype = compute_dtype(met.dtype)
    # `Layer.forms` gives a Dependent alone, never beside other forms.
    for form in forms:
        if isinstance(form, Dependent):
            return shaped(form.change(met.to(dtype)), met.shape)
    additive = independent(forms)
    if not additive:
        return torch.zeros(met.shape, dtype=dtype, device=met.device)
    return shaped(add_up(additive, dtype, met.device), met.shape)


def checked(change: Tensor, met: Tensor) -> Tensor:
    """The change of `met`, if it is finite.

    Raises LayerError where it holds NaN or infinity and `met` does not. A change that requires gradients is
    not checked, because training checks the loss.
    """
    if not change.requires_grad and not is_finite(change) and is_finite(met):
        raise overflow(change.dtype)
    return change


def check_each(*changes: tuple[Tensor | None, Tensor | None]) -> None:
    """`checked` for each change that there is, of a weight or of a bias; None for a bias stands for zeros."""
    for change, met in changes:
        if change is not None:
            checked(change, change.new_zeros(()) if met is None else met)


def overflow(dtype: torch.dtype) -> LayerError:
    """The error for a change, or a changed weight, that is too large for a dtype."""
    name = str(dtype).removeprefix("torch.")
    return LayerError(
        "E-change-overflows-float16" if dtype == torch.float16 else "E-change-overflows",
        max=f"{torch.finfo(dtype).max:.3g}",
        name=name,
    )


def column(values: Tensor) -> Tensor:
    """A value for each output, in any shape, as a matrix (O, 1)."""
    return values.reshape(-1, 1)


def axis_of(vector: Tensor) -> int:
    """The axis that holds the values of a vector, whose other dimensions have size 1."""
    return next((axis for axis, size in enumerate(vector.shape) if size > 1), 0)


def block_of(count: int, largest: int, what: str) -> tuple[int, int]:
    """The size and number of blocks for `count` outputs or inputs; `what` says which of the two.

    The size is the largest up to `largest` (at least 2) that divides them. Raises UnsuitedError where no size
    from 2 on divides them.
    """
    size = next(n for n in range(max(2, largest), 0, -1) if count % n == 0)
    if size < 2:
        raise UnsuitedError("E-no-block-divides", what=what, largest=max(2, largest), got=str(count))
    return size, count // size


def kaiming(shape: Shape, generator: torch.Generator) -> Tensor:
    """A factor (n, fan in, *kernel), uniform in +-1 / sqrt(fan in * prod(kernel)).

    Source: He et al., "Delving Deep into Rectifiers" (1502.01852), with a = sqrt(5) as in torch's layers.
    """
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def cut(tensor: Tensor, axis: int, ranges: Sequence[Rows]) -> Tensor:
    """Concatenate ranges of a tensor along an axis."""
    parts = [tensor.narrow(axis, start, stop - start) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def blocks_of(ranges: Sequence[Rows], size: int) -> list[Rows] | None:
    """Ranges of rows or columns as ranges of blocks of `size`; None where a range cuts through one."""
    if any(bound % size for rows in ranges for bound in rows):
        return None
    return [(start // size, stop // size) for start, stop in ranges]


def alpha_of(layer: Layer) -> float | None:
    """The alpha to write to a file; None to write none.

    Where alpha / rank scales the layer, the rank stands for a missing alpha, and NaN or infinity raises
    LayerError. A LoKr layer of two full factors has the scale 1 whatever its alpha is, but readers expect an
    alpha: the layer's own if it is finite, else 1.
    """
    if not layer.table.scaled_by_alpha:
        return layer.alpha
    rank = layer.rank
    if rank is None:
        return layer.alpha if layer.alpha is not None and math.isfinite(layer.alpha) else 1.0
    return scale(layer.alpha, rank) * rank


def shapes_of(tensors: Mapping[str, Tensor] | Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of named tensors, or the shapes themselves."""
    return {
        name: tuple(value.shape) if isinstance(value, Tensor) else tuple(value)
        for name, value in tensors.items()
    }


def _brief(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 64:
        # Python refuses to print numbers of thousands of digits.
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:80]


class Sharing(Layer):
    """A kind some of whose tensors serve all layers of a file: those that its table notes as shared."""

    @abstractmethod
    def alone(self, weight: Shape) -> Layer:
        """A layer of another kind, without shared tensors, with the same change of a weight of this shape.

        Raises LayerError for (), the shape of a weight that is not known, where it is needed.
        """

    @classmethod
    @abstractmethod
    def undrawn(cls, shape: Shape, rank: int) -> Self:
        """A fresh layer for a weight of this shape, whose shared tensors are zeros that take no memory."""

    @property
    def shared(self) -> dict[str, Tensor]:
        """The tensors that it shares, by field."""
        return {name: getattr(self, name) for name in map(field_of, self.table.shared)}

    def with_shared(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same layer with `change` of each tensor that it shares."""
        return self.with_tensors({name: change(tensor) for name, tensor in self.shared.items()})


def once(change: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of a tensor that gives the same result each time it meets the same tensor, with the same
    other arguments."""
    # With the tensor itself, so that no other one gets its id.
    kept: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def changed(tensor: Tensor, *others: Any) -> Tensor:
        key = (id(tensor), *others)
        if key not in kept:
            kept[key] = tensor, change(tensor, *others)
        return kept[key][1]

    return changed
