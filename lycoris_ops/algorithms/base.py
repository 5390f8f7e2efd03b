"""The contract that every adapter algorithm fulfils."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..changes.forms import Additive, Dependent, Form
from ..changes.operators import Sides
from ..errors import LayerError
from ..maths.tensors import Extent, Shape, compute_dtype, fits

if TYPE_CHECKING:
    from typing_extensions import Self

ALPHA = "alpha"
DIFF_B = "diff_b"


@dataclass(frozen=True)
class Change:
    """What a layer does at strength 1 to the weight it meets and to the bias beside it."""

    delta: Tensor | None
    """Added to the weight; larger than it where the layer enlarges the weight with zeros first."""
    bias: Tensor | None = None
    """Added to the bias."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer(ABC):
    """The named tensors of one adapted layer.

    A subclass declares one field per tensor, named after its key suffix with dots as underscores,
    its `variants`, the sets of suffixes that occur together, and its `extras`, which may accompany
    each of them. Fields of other types are options that a file does not hold. `alpha` is None where
    the file holds none, which means a scale of 1.
    """

    algorithm: ClassVar[str]
    variants: ClassVar[tuple[frozenset[str], ...]]
    extras: ClassVar[frozenset[str]] = frozenset({ALPHA, DIFF_B})
    scaled_by_alpha: ClassVar[bool] = False
    """Whether the change is scaled by alpha / rank."""
    bias_may_be_absent: ClassVar[bool] = False
    """Whether the change of the bias is one of whatever is there, rather than a tensor of its own."""
    dimensions: ClassVar[int | None] = None
    """Dimensions of the first tensor, where they alone tell two algorithms apart."""

    alpha: float | None = None
    diff_b: Tensor | None = None

    @classmethod
    def accepts(cls, tensors: Mapping[str, Tensor] | Mapping[str, Shape]) -> bool:
        """Whether these are exactly one variant of this algorithm, with some of its extras."""
        if cls.dimensions is None:
            return cls.has_names(frozenset(tensors))
        first = next(iter(cls.variants[0]))
        return cls.has_names(frozenset(tensors)) and len(shapes_of(tensors)[first]) == cls.dimensions

    @classmethod
    def has_names(cls, names: frozenset[str]) -> bool:
        """Whether these suffixes are one variant of this algorithm, with some of its extras."""
        return any(variant <= names and names - variant <= cls.extras for variant in cls.variants)

    @classmethod
    def suffixes(cls) -> frozenset[str]:
        """Every suffix that this algorithm reads, alpha included."""
        return cls.extras.union(*cls.variants)

    @classmethod
    @abstractmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Extent:
        """The shape (O, I, *kernel) or (O, K) of the change, from the tensors' shapes alone.

        None stands for a size that the layer leaves open; () means that the weight is not changed.
        Where the shapes do not tell which size they give (see `suits`), it is what they do tell.
        Raises LayerError where the tensors contradict each other.
        """

    @classmethod
    def suits(cls, shapes: Mapping[str, Shape], weight: Sequence[int]) -> bool:
        """Whether tensors of these shapes may change a weight of that shape, as far as shapes tell."""
        return fits(cls.shape(shapes), weight)

    @classmethod
    def made_for(cls, shapes: Mapping[str, Shape]) -> str:
        """The weights that tensors of these shapes may change, in words for messages."""
        return show(cls.shape(shapes))

    @classmethod
    def bias_shape(
        cls, shapes: Mapping[str, Shape], options: Mapping[str, Any] | None = None
    ) -> Shape | None:
        """The shape (O,) of the change of the bias, None where there is none."""
        return (math.prod(shapes[DIFF_B]),) if DIFF_B in shapes else None

    @classmethod
    def rank_of(cls, shapes: Mapping[str, Shape]) -> int | None:
        """The rank, from the tensors' shapes alone; None where nothing is factored."""
        return None

    @classmethod
    @abstractmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Self:
        """Fresh float32 factors for a weight of `shape`, with zero effect; the same for a seed."""

    def additive(self) -> tuple[Additive, ...] | None:
        """The change at strength 1 as a sum of factored forms; None where it depends on the weight.

        alpha / rank is applied here, nowhere else.
        """
        return None

    def sides(self, weight: Tensor) -> Sides:
        """The change at strength 1 as operators on a float32 or float64 weight, where `additive` is None.

        Unless `reads_weight`, shape, dtype and device of the weight are enough.
        """
        raise NotImplementedError(f"{self.algorithm} states neither its forms nor its operators")

    @property
    def reads_weight(self) -> bool:
        """Whether `sides` depends on the weight's values."""
        return False

    def dependent(self, weight: Tensor) -> Tensor:
        """The change at strength 1 of a float32 or float64 weight, where `additive` is None."""
        return self.sides(weight).change(weight)

    def forms(self) -> tuple[Form, ...]:
        """What the patch ops apply: the factored forms, or the layer itself."""
        additive = self.additive()
        return (Dependent(self),) if additive is None else additive

    def rows(self, start: int, stop: int) -> Layer:
        """The layer of some of the weight's rows alone, where its change depends on the weight.

        Raises LayerError where no row can be changed without the others.
        """
        raise LayerError(
            f"{a_layer(self.algorithm)} of this kind cannot be applied to a part of its rows",
            got=f"rows {start} to {stop}",
            expected="a model whose layer is not split where the adapter's is fused",
            hint="The rows of such a layer depend on each other",
        )

    def enlarged(self) -> Shape | None:
        """The shape to which the weight is enlarged with zeros first; None where it keeps its own."""
        return None

    def bias_layer(self) -> Layer | None:
        """The layer that changes the bias, None where there is none."""
        from .full import Full

        return None if self.diff_b is None else Full(diff=self.diff_b.flatten())

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], options: Mapping[str, Any] | None = None) -> Self:
        """The layer that these suffix-named tensors describe, with options that no tensor holds.

        Raises LayerError where a suffix is unknown, one is missing, shapes disagree, or values that
        say how the others are to be read cannot be right.
        """
        shapes = shapes_of(tensors)
        if not cls.accepts(shapes):
            raise LayerError(
                f"not {a_layer(cls.algorithm)}",
                got=", ".join(sorted(tensors)),
                expected=" or ".join(", ".join(sorted(variant)) for variant in cls.variants),
            )
        cls.shape(shapes)
        cls.bias_shape(shapes)
        fields: dict[str, Any] = {field_of(name): tensor for name, tensor in tensors.items()}
        if ALPHA in fields:
            fields[ALPHA] = _scalar(tensors[ALPHA])
        layer = cls(**fields, **(options or {}))
        layer.check_values()
        return layer

    def check_values(self) -> None:
        """Raise LayerError where values that say how the other tensors are to be read cannot be right."""
        return

    def dump(self) -> dict[str, Tensor]:
        """The suffix-named tensors; `load` of them gives this layer back, bit for bit."""
        tensors: dict[str, Tensor] = {}
        for suffix in self.suffixes() - {ALPHA}:
            value = getattr(self, field_of(suffix))
            if value is not None:
                tensors[suffix] = value
        if self.alpha is not None:
            alpha = torch.tensor(self.alpha, dtype=torch.float32)
            exact = alpha.item() == self.alpha
            tensors[ALPHA] = alpha if exact else torch.tensor(self.alpha, dtype=torch.float64)
        return tensors

    def delta(self, weight: Tensor) -> Tensor:
        """The change of `weight` at strength 1, in its shape, float32 (float64 for a float64 weight).

        Raises LayerError where the layer does not fit the weight's shape.
        """
        self.check_fit(weight.shape)
        dtype = compute_dtype(weight.dtype)
        additive = self.additive()
        if additive is None:
            return self.dependent(weight.to(dtype)).reshape(weight.shape)
        if not additive:
            return torch.zeros(weight.shape, dtype=dtype, device=weight.device)
        return add_up(additive, dtype, weight.device).reshape(weight.shape)

    def change(self, weight: Tensor, bias: Tensor | None = None) -> Change:
        """The change of a weight and of its bias; the latter may depend on `bias`, its value."""
        beside = self.bias_layer()
        met = weight.new_zeros(weight.shape[0]) if bias is None else bias
        return Change(
            delta=self.delta(weight) if self.extent else None,
            bias=None if beside is None else beside.delta(met),
        )

    @property
    def rank(self) -> int | None:
        """The rank; None where nothing is factored."""
        return self.rank_of(shapes_of(self.dump()))

    @property
    def extent(self) -> Extent:
        """The shape of the change, as `shape` has it, or more closely where the values tell more."""
        return self.shape(shapes_of(self.dump()))

    def check_fit(self, shape: Sequence[int]) -> None:
        """Raise LayerError unless the change can be added to a weight of this shape."""
        if not self.suits(shapes_of(self.dump()), shape):
            raise self.misfit(shape, self.made_for(shapes_of(self.dump())))

    def misfit(self, shape: Sequence[int], made_for: str) -> LayerError:
        """The error of a layer that does not fit a weight of this shape."""
        return LayerError(
            f"{a_layer(self.algorithm)} does not fit the weight",
            got=made_for,
            expected=str(list(shape)),
        )

    def nbytes(self) -> int:
        """Bytes of the tensors held."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return sum(value.nbytes for value in values if isinstance(value, Tensor))


def add_up(forms: Sequence[Additive], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The sum of forms as one matrix (O, K)."""
    total = forms[0].dense(dtype, device)
    for form in forms[1:]:
        total = total + form.dense(dtype, device)
    return total


def scale(alpha: float | None, rank: int) -> float:
    """alpha / rank, or 1 where the file holds no alpha. Raises LayerError for NaN and infinity."""
    if alpha is None:
        return 1.0
    if not math.isfinite(alpha):
        raise LayerError("alpha is not a finite number", got=str(alpha), expected="a finite number")
    return alpha / rank


def agree(what: str, first: tuple[str, int], second: tuple[str, int]) -> None:
    """Raise LayerError unless two sizes, each given with the name of its tensor, are equal."""
    if first[1] != second[1]:
        raise LayerError(
            f"the {what} of {first[0]} and {second[0]} disagree",
            got=f"{first[1]} and {second[1]}",
            expected="one size",
        )


def dimensions(shapes: Mapping[str, Shape], name: str, least: int = 2) -> Shape:
    """The shape of a tensor that must have at least `least` dimensions, none of them empty."""
    found = shapes[name]
    if 0 in found:
        raise LayerError(f"{name} is empty", got=str(list(found)), expected="no size of 0")
    if len(found) < least:
        raise LayerError(
            f"{name} has an unusable shape", got=str(list(found)), expected=f"{least} or more dimensions"
        )
    return found


def a_layer(kind: str) -> str:
    """A layer of that kind in words, with its article."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} layer"


def show(extent: Extent) -> str:
    """A shape in words for messages; what the layer leaves open is a star."""
    return "[" + ", ".join("*" if size is None else str(size) for size in extent) + "]"


def shapes_of(tensors: Mapping[str, Tensor] | Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of named tensors, or the shapes themselves."""
    return {
        name: tuple(value.shape) if isinstance(value, Tensor) else tuple(value)
        for name, value in tensors.items()
    }


def field_of(suffix: str) -> str:
    """The field of a layer that holds the tensor of that key suffix."""
    return suffix.removesuffix(".weight").replace(".", "_").lower()


def _scalar(tensor: Tensor) -> float:
    if tensor.numel() != 1:
        raise LayerError("alpha is not a single number", got=str(list(tensor.shape)), expected="[]")
    return float(tensor.item())
