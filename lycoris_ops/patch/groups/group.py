"""The interface of a group of layers of one form, for the paths that apply a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...maths.shapes import Rows, Shape

ROWS = 640
"""On a CPU this many rows, or a multiple, are worked on at once: matrix libraries divide other numbers of
rows less evenly."""

OnRows = Callable[[Tensor, int], object]
"""A function (rows, first) that changes `rows` (n, K), which are a weight's rows from `first` on."""


class Add:
    """A group's change, ready to be added to rows of a weight.

    `add` adds the change to the rows, `write` overwrites the rows with it. `once` says whether `add` adds
    only once to each value. Only then may `add` be given the weight's own rows. Several additions would each
    be rounded to the precision of the weight, whose values are much larger than the change.
    """

    def __init__(self, add: OnRows, write: OnRows | None = None, *, once: bool = True) -> None:
        self.add = add
        self.once = once
        self.write = write or self._to_zeros

    def _to_zeros(self, rows: Tensor, first: int) -> None:
        self.add(rows.zero_(), first)

    @property
    def clears(self) -> bool:
        """Whether `write` sets the rows to zero and then adds: one pass more than in other groups."""
        return self.write == self._to_zeros


@dataclass(frozen=True)
class Factors:
    """strength * scale * left @ right, with left (O, r) and right (r, K)."""

    left: Tensor
    right: Tensor
    scale: float
    slot: int | None
    """The place of the layer in the plan's strengths; None stands for strength 1."""

    def factor(self, strengths: Sequence[float]) -> float:
        return self.scale if self.slot is None else self.scale * strengths[self.slot]

    @property
    def rank(self) -> int:
        return self.right.shape[0]


class Group(Protocol):
    """Layers of one form that change the same rows of one weight.

    A group holds no tensors, only their places among the plan's: callers move the tensors between devices.
    """

    @property
    def summary(self) -> str:
        """What is fused and how, for the plan's report."""
        ...

    def products(self, tensors: Sequence[Tensor]) -> list[Factors]:
        """The factors of layers that are best added together with those of other groups, as one product.

        Empty for a group that adds all of its change itself.
        """
        return []

    def bind(self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype) -> Add | None:
        """The change that is not in `products`, for these tensors and strengths; None where there is none.

        The change will be added to rows of this `dtype`.
        """
        ...


class PathPlan(Protocol):
    """The parts of a plan that a path reads."""

    @property
    def final(self) -> Shape:
        """The shape of the patched weight, enlarged if a layer enlarges it."""
        ...

    @property
    def groups(self) -> tuple[tuple[Group, Rows | None], ...]:
        """Each group with the rows of the weight that it changes, None for all."""
        ...


def placed(add: Add, start: int, stop: int) -> Add:
    """Turn an `Add` for rows `start` to `stop` of a weight into one that takes any rows of the weight."""

    def within(rows: Tensor, first: int) -> None:
        low, high = max(first, start), min(first + len(rows), stop)
        if low < high:
            add.add(rows[low - first : high - first], low - start)

    return Add(within, once=add.once)
