"""Weights as layers see them, and where a file holds their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ..maths.shapes import Rows, Shape
from ..names.relation import LookedUp, Relation
from ..names.transposed import stored_transposed
from ..peft.parameters import of_expert
from ..stack.resolve import Match, in_order
from ..stack.stack import Entry, Stack

Pairs = Sequence[tuple[Entry, Match]]


class FileSlot(NamedTuple):
    """A tensor of a file, or the slice of it that is one weight."""

    key: str
    expert: int | None = None
    """Which slice of a tensor (E, O, I) it is; None for the whole tensor."""
    turned: bool = False
    """Whether it is stored as (I, O)."""

    @property
    def name(self) -> str:
        return self.key if self.expert is None else of_expert(self.key, self.expert)

    @property
    def whole(self) -> bool:
        """Whether it is the tensor as it is stored."""
        return self.expert is None and not self.turned

    def shape(self, stored: Shape) -> Shape:
        """The shape of the slot, given the shape of the stored tensor."""
        own = stored if self.expert is None else stored[1:]
        return own[::-1] if self.turned else own

    def of(self, tensor: Tensor) -> Tensor:
        """The values of the slot, as a view of the stored tensor."""
        own = tensor if self.expert is None else tensor[self.expert]
        return own.T if self.turned else own


class FileRows(NamedTuple):
    """Rows of a weight in a file."""

    slot: FileSlot
    rows: Rows | None = None
    """Which rows of the slot they are; None for all."""
    window: Rows | None = None
    """Which rows of the weight they are; None for all."""


class FileView(NamedTuple):
    """A weight or bias as layers see it, (O, I) or (O,), and where a file holds it."""

    shape: Shape
    sources: tuple[FileRows, ...]


def views_in(shapes: Mapping[str, Shape], stack: Stack) -> dict[str, FileView]:
    """The views that a file and the adapters show without the model's class, by the names of the weights."""
    return dict((*_experts(shapes, stack), *_transposed(shapes, stack)))


def _experts(shapes: Mapping[str, Shape], stack: Stack) -> Iterator[tuple[str, FileView]]:
    """The experts that a stack's layers may name, each with a name of its own: `<key>.expert3`.

    A tensor of experts with as many rows as columns is left out: nothing in it tells whether it is (E, O, I)
    or (E, I, O).
    """
    names = [name for entry in stack for name in entry.adapter.names]
    numbers = sorted({name.expert for name in names if name.expert is not None})
    for key, shape in shapes.items():
        if len(shape) == 3 and shape[1] != shape[2]:
            for number in numbers:
                if number < shape[0]:
                    yield of_expert(key, number), FileView(shape[1:], (FileRows(FileSlot(key, number)),))


def _transposed(shapes: Mapping[str, Shape], stack: Stack) -> Iterator[tuple[str, FileView]]:
    """The weights that are stored as (I, O), by their names.

    If the file's names show none, they are those that fit layers only when transposed, among the layers of
    adapters for such weights (see `Adapter.transposed`).
    """
    for key in stored_transposed(shapes) or _fitting_transposed(shapes, stack):
        yield key, FileView(shapes[key][::-1], (FileRows(FileSlot(key, turned=True)),))


def _fitting_transposed(shapes: Mapping[str, Shape], stack: Stack) -> set[str]:
    keys: set[str] = set()
    for adapter in (entry.adapter for entry in stack if entry.adapter.transposed):
        for layer, targets in LookedUp.of(adapter.names, Relation(shapes)).targets(adapter.path).items():
            info = adapter.info[layer]
            stored = shapes[targets[0].key] if len(targets) == 1 and targets[0].rows is None else ()
            if info.shape and len(stored) == 2 and info.fits(stored[::-1]):
                keys.add(targets[0].key)
    return keys


def slots_of(name: str, views: Mapping[str, FileView]) -> tuple[FileSlot, ...]:
    """The slots of a weight, by its name in the file or in `views`."""
    return tuple(source.slot for source in views[name].sources) if name in views else (FileSlot(name),)


def placed(
    pairs: Mapping[str, Pairs], views: Mapping[str, FileView]
) -> dict[FileSlot, list[tuple[Entry, Match]]]:
    """The layers that change each slot of a file, given those that change each weight by its name."""
    by_slot: dict[FileSlot, list[tuple[Entry, Match]]] = {}
    for name, of_name in pairs.items():
        view = views.get(name)
        for entry, match in of_name:
            if view is None:
                by_slot.setdefault(FileSlot(name), []).append((entry, match))
                continue
            for source in view.sources:
                if (met := _met(match, source, view.shape[0])) is not None:
                    by_slot.setdefault(source.slot, []).append((entry, met))
    return {slot: in_order(of_slot) for slot, of_slot in by_slot.items()}


def _met(match: Match, source: FileRows, size: int) -> Match | None:
    """The match for one source's rows alone; None where it changes none of them. `size` counts all rows."""
    if source.rows is None and source.window is None:
        return match
    changed, held = match.target.rows or (0, size), source.window or (0, size)
    start, end = max(changed[0], held[0]), min(changed[1], held[1])
    if start >= end:
        return None
    layer = (match.window or (0, 0))[0] - changed[0]
    slot = (source.rows or (0, 0))[0] - held[0]
    return match._replace(
        target=match.target._replace(rows=(slot + start, slot + end)), window=(layer + start, layer + end)
    )
