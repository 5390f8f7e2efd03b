"""diffusers' names for the host's layers: the record of them, and models that diffusers does not have."""

from __future__ import annotations

import pytest
from hosting import Host, needs

from lycoris_ops.names.architectures import ARCHITECTURES
from lycoris_ops.names.architectures.notation import recognised
from tests.harness import architecture_names, dialects, in_diffusers, zoo

pytestmark = pytest.mark.host


@pytest.mark.parametrize("architecture", zoo.SPECIES)
def test_no_row_has_two_names(host: Host, architecture: str) -> None:
    needs(architecture)
    shapes = {
        key.removeprefix(in_diffusers.PREFIX).removesuffix(".weight"): shape
        for key, shape in dialects.shapes_of(architecture).items()
        if key.startswith(in_diffusers.PREFIX) and not key.endswith(".bias")
    }
    models = [recognised(record.layouts, shapes) for record in ARCHITECTURES.values()]
    found = [model.in_diffusers() for model in models if model]
    assert len(found) <= 1
    rows = [
        (place.path, row)
        for names in found
        for places in names.values()
        for place in places
        for row in range(*(place.rows or (0, *shapes[place.path][:1])))
    ]
    assert len(rows) == len(set(rows))


@pytest.mark.soak
def test_the_record_is_what_diffusers_and_the_host_say(host: Host) -> None:
    if not all(zoo.supported(architecture) for architecture in zoo.SPECIES):
        pytest.skip("an older host has fewer architectures")
    made = architecture_names.text(in_diffusers.recorded())
    assert architecture_names.PATH.read_text(encoding="utf-8") == made, architecture_names.__doc__
