"""The paths that a tool has for a model's layers: the model's own, or those of diffusers' model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..maths.shapes import Rows, Shape
from .architectures import DIFFUSERS, DIFFUSERS_LOKR, Place, Places
from .architectures.base import Aliases


def own(shapes: Mapping[str, Shape]) -> Mapping[str, Places]:
    """The paths that the model itself has."""
    return {path: (Place(path),) for path in shapes}


def diffusers(shapes: Mapping[str, Shape]) -> Mapping[str, Places]:
    """The paths in diffusers' model; none for a model that diffusers does not have."""
    return _named(shapes, DIFFUSERS)


def diffusers_lokr(shapes: Mapping[str, Shape]) -> Mapping[str, Places]:
    """The paths with all projections fused, where diffusers reads LoKr for the model; else none."""
    return _named(shapes, DIFFUSERS_LOKR)


def diffusers_or_own(shapes: Mapping[str, Shape]) -> Mapping[str, Places]:
    """The paths in diffusers' model, or the model's own if diffusers does not have it."""
    return diffusers(shapes) or own(shapes)


def rows_of(place: Place, shapes: Mapping[str, Shape]) -> Rows:
    """First row and end of a place. A layer whose shape is not known, (), counts as one row."""
    shape = shapes[place.path]
    return place.rows or (0, shape[0] if shape else 1)


def _named(shapes: Mapping[str, Shape], tables: Iterable[Aliases]) -> dict[str, Places]:
    """The names of the layers in some tables, chosen so that every row is under one name only.

    Where names overlap, the one with fewer rows counts: split projections before fused ones. Of names with
    the same rows, the first in the table counts.
    """
    named = [(name, places) for table in tables for name, places in table(shapes).items()]
    sized = sorted(named, key=lambda item: sum(_size(place, shapes) for place in item[1]))
    taken: dict[str, list[Rows]] = {}
    found: dict[str, Places] = {}
    for name, places in sized:
        wanted = [(place.path, rows_of(place, shapes)) for place in places]
        if any(
            rows[0] < other[1] and other[0] < rows[1]
            for path, rows in wanted
            for other in taken.get(path, ())
        ):
            continue
        for path, rows in wanted:
            taken.setdefault(path, []).append(rows)
        found[name] = places
    return found


def _size(place: Place, shapes: Mapping[str, Shape]) -> int:
    start, stop = rows_of(place, shapes)
    return stop - start
