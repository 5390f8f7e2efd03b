"""What a group of layers of one form offers to the paths that apply a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...maths.scratch import scratch
from ...maths.shapes import Rows, Shape, flat_shape

ROWS = 640
"""Rows that are worked on at once on a CPU, or a multiple: matrix products share others out worse."""

OnRows = Callable[[Tensor, int], object]
"""Does something to rows (n, K) of a weight as a matrix, given with the number of the first one."""


class Add:
    """A group's change, ready to be added to rows of a weight.

    `write` is the change itself in place of what the rows hold. `once` says whether `add` adds the finished
    sum, once to each value: only then may the rows be the weight's own, for each step of another would round
    to values that are much larger than the change.
    """

    def __init__(self, add: OnRows, write: OnRows | None = None, *, once: bool = True) -> None:
        self.add = add
        self.once = once
        self.write = write or self._to_zeros

    @classmethod
    def of(cls, change: Tensor) -> Add:
        """That of a change that is there in full, as (O, K) in the dtype of the sum."""
        return cls(
            add=lambda rows, first: rows.add_(change[first : first + len(rows)]),
            write=lambda rows, first: rows.copy_(change[first : first + len(rows)]),
        )

    def _to_zeros(self, rows: Tensor, first: int) -> None:
        self.add(rows.zero_(), first)

    @property
    def clears(self) -> bool:
        """Whether `write` makes room by zeros first."""
        return self.write == self._to_zeros


@dataclass(frozen=True)
class Factors:
    """strength * scale * left @ right, with left (O, r) and right (r, K)."""

    left: Tensor
    right: Tensor
    scale: float
    slot: int | None
    """Which of the strengths is meant, None for 1."""

    def factor(self, strengths: Sequence[float]) -> float:
        return self.scale if self.slot is None else self.scale * strengths[self.slot]

    @property
    def rank(self) -> int:
        return self.right.shape[0]


class Group(Protocol):
    """Layers of one form on the same rows of one weight. It holds decisions, never a tensor."""

    @property
    def summary(self) -> str:
        """What is fused and how, for the plan's report."""
        ...

    def products(self, tensors: Sequence[Tensor]) -> list[Factors]:
        """The layers that are best added as one matrix product with all others."""
        ...

    def bind(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> Add | None:
        """What `products` leaves, with tensors and strengths fixed for one application; None for nothing.

        `weight` is what the group meets, before any layer has changed it.
        """
        ...


class Plan(Protocol):
    """What a path has to know of a plan."""

    @property
    def final(self) -> Shape:
        """The shape of the weight, enlarged where a layer enlarges it."""
        ...

    @property
    def groups(self) -> tuple[tuple[Group, Rows | None], ...]:
        """Each with the rows of the weight that it is for, None for all."""
        ...


def joined(
    products: Sequence[Factors], strengths: Sequence[float], dtype: torch.dtype, use: str
) -> tuple[Tensor, Tensor]:
    """All left factors side by side, and all right ones one below the other, with scales and strengths."""
    rank, device = sum(product.rank for product in products), products[0].left.device
    left = scratch(f"{use} left", (len(products[0].left), rank), dtype, device)
    right = scratch(f"{use} right", (rank, products[0].right.shape[1]), dtype, device)
    start = 0
    for product in products:
        place = slice(start, start + product.rank)
        left[:, place].copy_(product.left)
        right[place].copy_(product.right)
        factor = product.factor(strengths)
        if factor != 1.0:
            right[place].mul_(factor)
        start += product.rank
    return left, right


def placed(add: Add, start: int, stop: int) -> Add:
    """An `Add` made for rows `start` to `stop` of a weight, for rows of the whole weight."""

    def within(rows: Tensor, first: int) -> None:
        low, high = max(first, start), min(first + len(rows), stop)
        if low < high:
            add.add(rows[low - first : high - first], low - start)

    return Add(within, once=add.once)


Placed = tuple[Group, tuple[int, int]]
"""A group, and the rows of the weight that it is for."""


def summed(
    groups: Sequence[Placed], tensors: Sequence[Tensor], strengths: Sequence[float], weight: Tensor
) -> tuple[Tensor, int] | None:
    """The sum of groups as one float32 matrix, and the row of the weight that its first one is for.

    For paths that add some groups themselves: what they leave, such as sparse changes and those that depend
    on the weight, is one more change to them.
    """
    if not groups:
        return None
    start, stop = min(low for _, (low, _) in groups), max(high for _, (_, high) in groups)
    total = torch.zeros(stop - start, flat_shape(weight.shape)[1], dtype=torch.float32, device=weight.device)
    for group, (low, high) in groups:
        add = group.bind(tensors, strengths, torch.float32, weight[low:high])
        if add:
            add.add(total[low - start : high - start], 0)
    return total, start
