"""The texts of the nodes in English as the front end looks them up: `nodeDefs` of `locales/en/main.json`.

    python -m tests.harness.locales --write

writes them from the nodes' schemas, in the environment of the tests. Other languages are translated by hand,
and a test compares their keys.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .assets import install
from .facts import NODES, ROOT, facts
from .launch import base_directory, boot_in_process

FOLDER = ROOT / "locales"
FILE = "main.json"
NODE_TEXTS = "nodeDefs"


def of_schemas(registered: Mapping[str, Any]) -> dict[str, Any]:
    """Names, descriptions and tooltips of all nodes, given the host's nodes by id."""
    return {node: _of_schema(registered[node].GET_SCHEMA()) for node in NODES}


def _of_schema(schema: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for key, one in inputs_of(schema.inputs):
        # Where several choices bring an input of one name, the front end has one text for all: the first.
        inputs.setdefault(key, _part(one.display_name or one.id, one.tooltip))
    outputs = {
        str(place): _part(one.display_name or one.id, one.tooltip) for place, one in enumerate(schema.outputs)
    }
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        **({"inputs": inputs} if inputs else {}),
        **({"outputs": outputs} if outputs else {}),
    }


def inputs_of(inputs: Iterable[Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """The inputs by the keys that the front end looks up, with those that a choice brings along."""
    for one in inputs:
        yield start + one.id, one
        for option in getattr(one, "options", None) or ():
            # `<choice>.<input>` in the prompt; keys of texts have no dots.
            yield from inputs_of(getattr(option, "inputs", ()), f"{start}{one.id}_")


def _part(name: str, tooltip: str) -> dict[str, str]:
    return {"name": name, "tooltip": tooltip}


def keys_of(table: Mapping[str, Any], start: str = "") -> set[str]:
    """The paths of all texts in a table of tables."""
    found: set[str] = set()
    for key, value in table.items():
        path = f"{start}.{key}" if start else key
        found |= keys_of(value, path) if isinstance(value, Mapping) else {path}
    return found


def read(language: str) -> dict[str, Any]:
    """All texts of a language."""
    return json.loads((FOLDER / language / FILE).read_text(encoding="utf-8"))


def text_of(table: Mapping[str, Any]) -> str:
    return json.dumps(table, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    base = install(base_directory(ROOT / ".cache" / facts().host / "locales", ROOT))
    nodes = boot_in_process(facts().comfyui, base)
    target = Path(FOLDER / "en" / FILE)
    texts = {**read("en"), NODE_TEXTS: of_schemas(nodes.NODE_CLASS_MAPPINGS)}
    target.write_text(text_of(texts), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.harness.locales --write")
    main()
