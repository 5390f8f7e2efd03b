"""The paths that a tool has for a model's layers: the model's own, or those of diffusers' model."""

from __future__ import annotations

from collections.abc import Mapping

from ..maths.shapes import Rows, Shape
from .architectures import Place, Places, recognise


def own(shapes: Mapping[str, Shape]) -> Mapping[str, Places]:
    """The paths that the model itself has."""
    return {path: (Place(path),) for path in shapes}


def diffusers(shapes: Mapping[str, Shape]) -> Mapping[str, Places]:
    """The paths in diffusers' model; empty for a model that diffusers does not have."""
    model = recognise(shapes)
    return model.in_diffusers() if model else {}


def diffusers_lokr(shapes: Mapping[str, Shape]) -> Mapping[str, Places]:
    """The paths in diffusers' model after it has fused all projections, as it does to read LoKr.

    Empty for a model for which diffusers reads no LoKr.
    """
    model = recognise(shapes)
    return model.in_diffusers_with_lokr() if model else {}


def diffusers_or_own(shapes: Mapping[str, Shape]) -> Mapping[str, Places]:
    """The paths in diffusers' model, or the model's own if diffusers does not have it."""
    return diffusers(shapes) or own(shapes)


def rows_of(place: Place, shapes: Mapping[str, Shape]) -> Rows:
    """The first row of a place, and the row after its last. An unknown shape, (), counts as one row."""
    shape = shapes[place.path]
    return place.rows or (0, shape[0] if shape else 1)
