"""What a kind must define so that its layers can be trained: where they start."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from functools import cache
from typing import TYPE_CHECKING

from ..maths.shapes import Shape, flat_shape
from .base import Layer

if TYPE_CHECKING:
    from typing_extensions import Self


class Trained(Layer):
    """A kind whose layers can start from the shape of a weight alone."""

    @classmethod
    @abstractmethod
    def init(cls, shape: Shape, rank: int, alpha: float, *, seed: int) -> Self:
        """Fresh float32 tensors for a weight of `shape`, which change nothing yet; the same seed gives the
        same ones."""

    @classmethod
    @cache
    def init_options(cls) -> frozenset[str]:
        """The options of `init` other than sizes and seed."""
        return frozenset(inspect.signature(cls.init).parameters) - {"shape", "rank", "alpha", "seed"}

    @classmethod
    def most_rank(cls, shape: Shape) -> int | None:
        """The highest useful rank for a weight of this shape; None for no bound."""
        return min(flat_shape(shape)) if cls.table.scaled_by_alpha else None
