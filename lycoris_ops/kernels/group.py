"""What a group of layers of one form offers to the paths that apply a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Add = Callable[[Tensor, int], None]
"""Adds a group's change to some rows: the rows (n, K), contiguous, and the number of the first."""

TILE = 1 << 20
"""Elements of a weight that are worked on at once: 4 MB in float32 stay in the cache, and smaller
tiles lose more to call overhead than they win (measured on two cores: 1 to 2 M is best)."""


@dataclass(frozen=True)
class Product:
    """strength * scale * L @ R, each side one matrix or the Khatri-Rao product of two.

    L (O, r), or of a (O, m) and b (O, n) the row-wise product (O, m n); R (r, K), or of a (m, K) and
    b (n, K) the column-wise product (m n, K).
    """

    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    scale: float
    slot: int
    """Which of the strengths is meant."""

    def factor(self, strengths: Sequence[float]) -> float:
        return self.scale * strengths[self.slot]

    @property
    def rank(self) -> int:
        rank = 1
        for part in self.right:
            rank *= part.shape[0]
        return rank


class Group(Protocol):
    """Layers of one form on the same rows of one weight. It holds decisions, never a tensor."""

    @property
    def summary(self) -> str:
        """What is fused and how, for the plan's report."""
        ...

    def products(self, tensors: Sequence[Tensor]) -> list[Product]:
        """The layers that are best added as one matrix product with all others.

        Their sides are the given tensors themselves: paths keep where these are.
        """
        ...

    def bind(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> Add | None:
        """What `products` leaves, with tensors and strengths fixed for one application; None for nothing.

        `weight` is what the group meets, before any layer has changed it.
        """
        ...


def row_tiles(rows: int, columns: int) -> list[tuple[int, int]]:
    """Row ranges of about TILE elements each."""
    step = max(1, TILE // max(1, columns))
    return [(first, min(rows, first + step)) for first in range(0, rows, step)]


def placed(add: Add, start: int, stop: int) -> Add:
    """An `Add` made for rows `start` to `stop` of a weight, for tiles of the whole weight."""

    def within(rows: Tensor, first: int) -> None:
        low, high = max(first, start), min(first + len(rows), stop)
        if low < high:
            add(rows[low - first : high - first], low - start)

    return within
