"""The contract that every adapter algorithm fulfils."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..algebra import Shape, compute_dtype, fits
from ..errors import LayerError
from ..forms import Form

if TYPE_CHECKING:
    from typing_extensions import Self

ALPHA = "alpha"


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer(ABC):
    """The named tensors of one adapted layer.

    A subclass declares one field per tensor, named after its key suffix with dots as underscores,
    and its `variants`, the sets of suffixes that occur together. `alpha` is None where the file
    holds none, which means a scale of 1.
    """

    algorithm: ClassVar[str]
    variants: ClassVar[tuple[frozenset[str], ...]]

    alpha: float | None = None

    @classmethod
    def accepts(cls, suffixes: Collection[str]) -> bool:
        """Whether these suffixes, alpha aside, are exactly one variant of this algorithm."""
        return frozenset(suffixes) - {ALPHA} in cls.variants

    @classmethod
    def suffixes(cls) -> frozenset[str]:
        """Every suffix that this algorithm reads, alpha included."""
        return frozenset({ALPHA}).union(*cls.variants)

    @classmethod
    @abstractmethod
    def shape(cls, shapes: Mapping[str, Shape]) -> Shape:
        """The shape (O, I, *kernel) or (O, K) of the change, from the tensors' shapes alone.

        Raises LayerError where the tensors contradict each other.
        """

    @classmethod
    @abstractmethod
    def rank_of(cls, shapes: Mapping[str, Shape]) -> int | None:
        """The rank, from the tensors' shapes alone; None where nothing is factored."""

    @classmethod
    @abstractmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Self:
        """Fresh float32 factors for a weight of `shape`, with zero effect; the same for a seed."""

    @abstractmethod
    def form(self) -> Form:
        """The change at strength 1 in factored form; alpha / rank is applied here, nowhere else."""

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The layer that these suffix-named tensors describe.

        Raises LayerError where a suffix is unknown, one is missing, or shapes disagree.
        """
        if not cls.accepts(tensors):
            raise LayerError(
                f"not a {cls.algorithm} layer",
                got=", ".join(sorted(tensors)),
                expected=" or ".join(", ".join(sorted(variant)) for variant in cls.variants),
            )
        cls.shape(_shapes(tensors))
        fields: dict[str, Any] = {_field(name): tensor for name, tensor in tensors.items()}
        if ALPHA in fields:
            fields[ALPHA] = _scalar(tensors[ALPHA])
        return cls(**fields)

    def dump(self) -> dict[str, Tensor]:
        """The suffix-named tensors; `load` of them gives this layer back, bit for bit."""
        tensors: dict[str, Tensor] = {}
        for variant in self.variants:
            values = {name: getattr(self, _field(name)) for name in variant}
            if all(value is not None for value in values.values()) and len(values) > len(tensors):
                tensors = values
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
        dense = self.form().dense(compute_dtype(weight.dtype), weight.device)
        return dense.reshape(weight.shape)

    @property
    def rank(self) -> int | None:
        """The rank; None where nothing is factored."""
        return self.rank_of(_shapes(self.dump()))

    def check_fit(self, shape: Sequence[int]) -> None:
        """Raise LayerError unless the change can be added to a weight of this shape."""
        stored = self.shape(_shapes(self.dump()))
        if not fits(stored, shape):
            raise LayerError(
                f"a {self.algorithm} layer does not fit the weight",
                got=str(list(stored)),
                expected=str(list(shape)),
            )

    def nbytes(self) -> int:
        """Bytes of the tensors held."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return sum(value.nbytes for value in values if isinstance(value, Tensor))


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
    if len(found) < least or 0 in found:
        raise LayerError(
            f"{name} has an unusable shape", got=str(list(found)), expected=f"{least} or more dimensions"
        )
    return found


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _field(suffix: str) -> str:
    return suffix.replace(".", "_").removesuffix("_weight")


def _scalar(tensor: Tensor) -> float:
    if tensor.numel() != 1:
        raise LayerError("alpha is not a single number", got=str(list(tensor.shape)), expected="[]")
    return float(tensor.item())
