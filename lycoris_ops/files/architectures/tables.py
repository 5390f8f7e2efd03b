"""How the modules of this folder write down what other names mean, and how that is looked up.

A table has other names on the left and what they mean on the right: a path, or parts of paths one
after the other. `*` is the number of a block, the same on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ...algebra import Shape
from .base import Place, Places


@dataclass(frozen=True)
class Part:
    """Rows of a layer, from unit `first` to unit `end`; the whole layer where there is one unit.

    A unit is the rows divided by `units`, or as many rows as the layer `like` has.
    """

    path: str
    first: int = 0
    end: int | None = None
    units: int = 1
    like: str | None = None

    def numbered(self, number: str) -> Part:
        """With a number for the first `*`."""
        like = self.like and self.like.replace("*", number, 1)
        return replace(self, path=self.path.replace("*", number, 1), like=like)

    def under(self, prefix: str) -> Part:
        return replace(self, path=f"{prefix}.{self.path}", like=self.like and f"{prefix}.{self.like}")


Meaning = str | tuple[Part, ...]
Table = Mapping[str, Meaning]


def split(path: str, *names: str, like: str | None = None) -> dict[str, Meaning]:
    """Names of equal parts of a layer, in order; with `like` the last one is all the rest."""
    ends = [n + 1 for n in range(len(names))]
    return {
        name: (Part(path, end - 1, None if like and end == len(names) else end, len(names), like),)
        for name, end in zip(names, ends, strict=True)
    }


def head(path: str, units: int, like: str) -> Meaning:
    """The first rows of a layer, so many times the rows of the layer `like`."""
    return (Part(path, 0, units, like=like),)


def rest(path: str, units: int, like: str) -> Meaning:
    """What `head` leaves."""
    return (Part(path, units, like=like),)


def swapped(path: str) -> Meaning:
    """A layer with its two halves exchanged: shift and scale, where a tool has them the other way."""
    return (Part(path, 1, 2, units=2), Part(path, 0, 1, units=2))


def fused(*paths: str) -> Meaning:
    """One layer, where the model has several."""
    return tuple(Part(path) for path in paths)


def under(theirs: str, ours: str, table: Table) -> dict[str, Meaning]:
    """A table for what is below one path, which other tools call `theirs`."""
    return {
        f"{theirs}.{name}": f"{ours}.{meaning}"
        if isinstance(meaning, str)
        else tuple(part.under(ours) for part in meaning)
        for name, meaning in table.items()
    }


def find(
    table: Table, shapes: Mapping[str, Shape], spellings: Mapping[str, str] | None = None
) -> dict[str, Places]:
    """The names of a table, and their places, as far as the model has them.

    `spellings` are other names of single layers that files of the model itself can have instead:
    they are names like all others, and where a file has them they stand for ours.
    """
    numbers = _numbers(shapes)
    paths = {path: path for path in shapes}
    names = list(_expanded(table, numbers))
    for name, parts in _expanded(spellings or {}, numbers):
        ours = parts[0].path
        names.append((name, parts))
        if ours not in shapes and name in shapes:
            paths[ours] = name
            names.append((ours, parts))
    found: dict[str, Places] = {}
    for name, parts in names:
        places = [_place(part, paths, shapes) for part in parts]
        known = tuple(place for place in places if place)
        if len(known) == len(parts) and known != (Place(name),):
            found[name] = known
            # OneTrainer numbers the parts of a layer: the second third of qkv is qkv.1.
            if len(parts) == 1 and parts[0].units > 1:
                found[f"{parts[0].path}.{parts[0].first}"] = known
    return found


def _place(part: Part, paths: Mapping[str, str], shapes: Mapping[str, Shape]) -> Place | None:
    """Where a part is; None where the model has no such layer or its shape does not allow it."""
    path = paths.get(part.path)
    if path is None:
        return None
    if part.units == 1 and part.like is None:
        return Place(path)
    shape, like = shapes[path], shapes.get(paths.get(part.like or "", ""), ())
    if not shape or (part.like and not like):
        return None
    rows = shape[0]
    if not part.like and rows % part.units:
        return None
    unit = like[0] if part.like else rows // part.units
    first, end = part.first * unit, rows if part.end is None else part.end * unit
    return Place(path, (first, end)) if first < end <= rows else None


def _expanded(table: Table, numbers: Mapping[str, list[str]]) -> Iterator[tuple[str, tuple[Part, ...]]]:
    """The rows of a table with the numbers of blocks for every `*`."""
    for name, meaning in table.items():
        yield from _filled(name, (Part(meaning),) if isinstance(meaning, str) else meaning, numbers)


def _filled(
    name: str, parts: tuple[Part, ...], numbers: Mapping[str, list[str]]
) -> Iterator[tuple[str, tuple[Part, ...]]]:
    root, star, _ = parts[0].path.partition(".*")
    if not star:
        yield name, parts
        return
    for number in numbers.get(root, ()):
        yield from _filled(
            name.replace("*", number, 1), tuple(part.numbered(number) for part in parts), numbers
        )


def _numbers(shapes: Mapping[str, Shape]) -> dict[str, list[str]]:
    """What stands before a number in any path, to the numbers that stand there."""
    found: dict[str, dict[str, None]] = {}
    for path in shapes:
        words = path.split(".")
        for depth, word in enumerate(words):
            if depth and word.isdigit():
                found.setdefault(".".join(words[:depth]), {})[word] = None
    return {root: list(numbers) for root, numbers in found.items()}
