"""What a kind must define whose layers share tensors: what a layer is without the others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..maths.shapes import Shape
from .axes import field_of
from .base import Layer

if TYPE_CHECKING:
    from typing_extensions import Self


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
