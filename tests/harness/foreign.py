"""Finds out which rows of the host's model a layer of other software's model is, by numbering all values.

Every value of a host model's weights gets a number of its own, the other software's conversion runs on
them, and each row that comes out is looked up. The pack's own tables of names have no part in it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Located:
    """A layer of other software: its weight's shape, and the host's row behind each of its rows."""

    shape: tuple[int, ...]
    keys: tuple[str, ...]
    """The keys of the host's weights that it takes rows from."""
    key_of: Tensor
    """(O,): for each row, the index in `keys` of the weight that it comes from."""
    row_of: Tensor
    """(O,): for each row, its number in that weight."""

    def rows(self) -> list[tuple[int, int]]:
        """For each row, the index in `keys` of its weight, and its number in that weight."""
        return list(zip(self.key_of.tolist(), self.row_of.tolist(), strict=True))

    def same(self, other: Located) -> bool:
        """Whether both are the same rows of the same weights, in the same order."""
        mine, theirs = ([(where.keys[key], row) for key, row in where.rows()] for where in (self, other))
        return mine == theirs and self.shape == other.shape

    def through(self, parts: Mapping[str, Located]) -> Located:
        """The layer in terms of other weights, where its own keys are layers that are located in those.

        parts: the located layers by path.
        """
        rows = [parts[self.keys[key].removesuffix(".weight")].row(row) for key, row in self.rows()]
        keys = tuple(dict.fromkeys(key for key, _ in rows))
        key_of = torch.tensor([keys.index(key) for key, _ in rows])
        return Located(self.shape, keys, key_of, torch.tensor([row for _, row in rows]))

    def row(self, number: int) -> tuple[str, int]:
        """The host's key and row behind one of its rows."""
        return self.keys[int(self.key_of[number])], int(self.row_of[number])

    @classmethod
    def whole(cls, key: str, shape: Sequence[int]) -> Located:
        """A layer that is one weight of the host, row for row."""
        return cls(tuple(shape), (key,), torch.zeros(shape[0], dtype=torch.long), torch.arange(shape[0]))

    def scatter(self, delta: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The changes of the host's weights, by key, that a change of this layer stands for.

        delta: in the layer's shape. shapes: those of the host's weights. All other rows of these get zeros.
        """
        changes: dict[str, Tensor] = {}
        for number, key in enumerate(self.keys):
            mine = self.key_of == number
            change = torch.zeros(shapes[key], dtype=delta.dtype).flatten(1)
            change[self.row_of[mine]] = delta.flatten(1)[mine]
            changes[key] = change.view(shapes[key])
        return changes


class Numbered:
    """A state dict of the same keys and shapes in which every value is a different whole number."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.keys = tuple(key for key, value in state.items() if value.ndim)
        self.shapes = {key: tuple(state[key].shape) for key in self.keys}
        sizes = torch.tensor([state[key].numel() for key in self.keys])
        ends = sizes.cumsum(0)
        self.starts = ends - sizes
        self.state: State = {
            key: torch.arange(int(start), int(end)).view(self.shapes[key])
            for key, start, end in zip(self.keys, self.starts, ends, strict=True)
        }

    def locate(self, weight: Tensor) -> Located:
        """The rows of a weight that other software made of `state` by moving whole rows.

        Raises ValueError where its rows are not rows of the numbered weights.
        """
        rows = weight.reshape(len(weight), -1)
        first = rows[:, 0].contiguous()
        found = torch.searchsorted(self.starts, first, right=True) - 1
        numbers, key_of = found.unique(return_inverse=True)
        keys = tuple(self.keys[number] for number in numbers.tolist())
        width = rows.shape[1]
        row_of = (first - self.starts[found]) // width
        # A row that was moved as a whole still counts up from its first number.
        again = first[:, None] + torch.arange(width)
        whole = all(torch.Size(self.shapes[key][1:]).numel() == width for key in keys)
        if not whole or not torch.equal(rows, again) or ((first - self.starts[found]) % width).any():
            raise ValueError(f"a weight of shape {tuple(weight.shape)} is not made of whole rows of {keys}")
        return Located(tuple(weight.shape), keys, key_of, row_of)


def with_constants(function: Callable[..., Any], constants: Mapping[Any, Any]) -> Callable[..., Any]:
    """A copy of a function with other numbers in its code, also in the functions inside it.

    constants: a number in the code, to the number that replaces it. diffusers' conversions are written with
    the widths of one published model, and the tests' models are narrower.
    """

    def changed(code: types.CodeType) -> types.CodeType:
        values = tuple(
            changed(value)
            if isinstance(value, types.CodeType)
            else constants.get(value, value)
            if isinstance(value, int | float) and not isinstance(value, bool)
            else value
            for value in code.co_consts
        )
        return code.replace(co_consts=values)

    return types.FunctionType(
        changed(function.__code__),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
