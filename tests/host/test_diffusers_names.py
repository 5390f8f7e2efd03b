"""diffusers' names for the host's layers, on every architecture of the host.

The reference is diffusers itself: the layers of its classes, and its conversions of checkpoints.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from hosting import Host

from lycoris_ops.names.architectures import DIFFUSERS, Places
from tests.harness import dialects, in_diffusers, zoo

pytestmark = pytest.mark.host

Shapes = dict[str, tuple[int, ...]]
Rows = list[tuple[str, int]]


def shapes_of(architecture: str) -> Shapes:
    """The weights and other parameters of the host's model, by their paths in it."""
    if not zoo.supported(architecture):
        pytest.skip(f"this host has no {architecture}")
    return {
        key.removeprefix(in_diffusers.PREFIX).removesuffix(".weight"): shape
        for key, shape in dialects.shapes_of(architecture).items()
        if key.startswith(in_diffusers.PREFIX) and not key.endswith(".bias")
    }


def names_of(shapes: Shapes) -> dict[str, Places]:
    """diffusers' names from the module that knows the architecture, or none if no module does."""
    found = [names for table in DIFFUSERS if (names := table(shapes))]
    assert len(found) <= 1
    return dict(found[0]) if found else {}


def rows_of(places: Places, shapes: Shapes) -> Rows:
    """The (path, row) of every row that a name means."""
    return [
        (place.path, row) for place in places for row in range(*(place.rows or (0, *shapes[place.path][:1])))
    ]


def class_names(architecture: str) -> set[str]:
    """Every layer and other parameter of diffusers' own class."""
    species = in_diffusers.DIFFUSERS[architecture]
    with torch.device("meta"):
        model = getattr(importlib.import_module("diffusers"), species.model)(**species.config)
    return {key.removesuffix(".weight") for key in model.state_dict()}


@pytest.mark.parametrize("architecture", zoo.SPECIES)
def test_no_row_has_two_names(host: Host, architecture: str) -> None:
    shapes = shapes_of(architecture)
    rows = [row for places in names_of(shapes).values() for row in rows_of(places, shapes)]
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("architecture", in_diffusers.DIFFUSERS)
def test_the_names_are_those_of_the_class_and_mean_what_its_conversion_says(
    host: Host, architecture: str
) -> None:
    shapes = shapes_of(architecture)
    names = names_of(shapes)
    located = in_diffusers.located(architecture, dialects.model_of(architecture))
    wanted = {
        name: [(where.keys[key].removesuffix(".weight"), row) for key, row in where.rows()]
        for name, where in located.items()
    }
    assert {name: rows_of(names[name], shapes) for name in wanted.keys() & names.keys()} == {
        name: rows for name, rows in wanted.items() if name in names
    }
    assert wanted.keys() - names.keys() == set()
    # Norms and bare parameters have names too; no conversion tells their rows.
    assert names.keys() - class_names(architecture) == set()
