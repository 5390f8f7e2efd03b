"""The templates have the nodes as they are now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hosting import Host

from tests.harness.templates import TEMPLATES, template
from tests.harness.workflow import NOTES

pytestmark = pytest.mark.host


def inputs_of(definition: dict[str, Any]) -> Iterator[str]:
    """The inputs that the front end gives a new node, but for those that links and choices bring along."""
    for name, (kind, *options) in {**definition["required"], **definition.get("optional", {})}.items():
        if not str(kind).startswith("COMFY_AUTOGROW"):
            yield name
        # The button for another file is an input too.
        if options and options[0].get("image_upload"):
            yield "upload"


@pytest.mark.parametrize("name", TEMPLATES)
def test_nodes_of_templates_have_all_their_inputs(host: Host, name: str) -> None:
    """Where one is missing, newer front ends add it in a way that they call deprecated."""
    for node in template(name)["nodes"]:
        if node["type"] in NOTES:
            continue
        wanted = [*inputs_of(host.nodes.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES())]
        saved = [slot for slot in node["inputs"] if "." not in slot["name"]]
        assert sorted(slot["name"] for slot in saved) == sorted(wanted), node["type"]
        # The values of the widgets are saved in this order.
        widgets = [slot["name"] for slot in saved if "widget" in slot]
        assert widgets == [one for one in wanted if one in widgets], node["type"]
        slots = {slot["link"]: place for place, slot in enumerate(node["inputs"]) if slot["link"] is not None}
        ends = {link: slot for link, _, _, end, slot, _ in template(name)["links"] if end == node["id"]}
        assert ends == slots, node["type"]
