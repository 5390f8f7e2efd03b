"""From a workflow, as the front end saves it, to a prompt, as the host runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

ACTIVE = 0
"""The `mode` of a node that is neither muted nor bypassed."""
NOTES = ("Note", "MarkdownNote")
"""Types of nodes that the front end alone knows."""


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The prompt of a workflow of plain nodes: no subgraphs, reroutes or primitives.

    Notes and nodes that are muted or bypassed are left out, and so are the links from them.

    object_info: as `Server.object_info()` gives it.

    Raises:
        ValueError: a node is of a type that the host does not know.
    """
    nodes = {
        node["id"]: node for node in workflow["nodes"] if node["type"] not in NOTES and node["mode"] == ACTIVE
    }
    unknown = sorted({node["type"] for node in nodes.values()} - object_info.keys())
    if unknown:
        raise ValueError(f"The host does not know the node types {', '.join(unknown)}")
    sources = {link: [str(node), slot] for link, node, slot, *_ in workflow["links"] if node in nodes}
    return {
        str(number): {
            "class_type": node["type"],
            "inputs": dict(_values(node, object_info[node["type"]])) | dict(_links(node, sources)),
        }
        for number, node in nodes.items()
    }


def with_values(
    workflow: dict[str, Any], object_info: dict[str, Any], values: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A copy of a workflow with other values of widgets: type of node -> input -> value."""
    changed = deepcopy(workflow)
    for node in changed["nodes"]:
        wanted = values.get(node["type"], {})
        for name, place in _places(node, object_info[node["type"]]) if wanted else ():
            if name in wanted:
                node["widgets_values"][place] = wanted[name]
    return changed


def _links(node: dict[str, Any], sources: dict[int, list[Any]]) -> Iterator[tuple[str, list[Any]]]:
    """The name of each linked input, and the node and output that it is linked to."""
    for slot in node["inputs"]:
        if slot["link"] in sources:
            yield slot["name"], sources[slot["link"]]


def _values(node: dict[str, Any], definition: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The name and value of each input with a widget."""
    values = node.get("widgets_values") or ()
    for name, place in _places(node, definition):
        yield name, values[place]


def _places(node: dict[str, Any], definition: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The name of each input with a widget, and where its value is among the node's.

    The front end saves the values in the order of the inputs. After a seed's value it saves what happens to
    the seed after a run (`control_after_generate`). That is no input and is passed over.
    """
    specs = {name: spec for group in definition["input"].values() for name, spec in group.items()}
    place = 0
    for slot in node["inputs"]:
        if "widget" in slot:
            # The front end adds widgets of its own to some nodes, such as the upload button of Load Image.
            if slot["name"].partition(".")[0] in specs:
                yield slot["name"], place
            # Inputs within a group are not in `specs`, and no group has a seed.
            _, *options = specs.get(slot["name"], (None,))
            place += 2 if options and options[0].get("control_after_generate") else 1
