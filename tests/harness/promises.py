"""What the last version promised: nodes with inputs and outputs, and public names with parameters.

    python -m tests.harness.promises --write

writes `promises.json` when a version is published. Run it in the environment of the tests. A test compares
the present code with it; docs/versions.md says what may be removed, and when.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from inspect import isclass, ismodule, signature
from itertools import zip_longest
from pathlib import Path
from typing import Any

import lycoris_ops as lyc

from .assets import install
from .facts import NODES, ROOT, facts
from .launch import base_directory, boot_in_process
from .locales import inputs_of

FILE = Path(__file__).with_suffix(".json")
Promise = dict[str, Any]


def of_nodes(registered: Mapping[str, Any]) -> Promise:
    """The inputs and outputs of all nodes with their types, given the host's nodes by id."""
    return {node: _of_schema(registered[node].GET_SCHEMA()) for node in NODES}


def _of_schema(schema: Any) -> Promise:
    return {
        "inputs": {key: one.get_io_type() for key, one in inputs_of(schema.inputs)},
        "outputs": [[one.id, one.get_io_type()] for one in schema.outputs],
        "needed": [one.id for one in schema.inputs if not one.optional and not hasattr(one, "default")],
    }


def of_library() -> Promise:
    """The public names of the library, with the parameters of functions and classes."""
    names = [name for name, value in vars(lyc).items() if not name.startswith("_") and not ismodule(value)]
    return {name: _parameters(getattr(lyc, name)) for name in sorted(names)}


def _parameters(value: Any) -> dict[str, bool] | None:
    """Each parameter of a callable, and whether it has to be given; None for other values.

    Those of a class never have to be given: the library makes its objects, which may get more fields.
    """
    try:
        found = signature(value).parameters.values() if callable(value) else None
    except ValueError:
        return None
    if found is None:
        return None
    return {one.name: one.default is one.empty and not isclass(value) for one in found}


def broken_by_nodes(before: Promise, now: Promise) -> Iterator[str]:
    """What a workflow of the version before can use and no longer finds."""
    for node, had in before.items():
        if node not in now:
            yield f"the node {node} is gone"
            continue
        has = now[node]
        for name, kind in had["inputs"].items():
            found = has["inputs"].get(name)
            if not found or not set(kind.split(",")) <= set(found.split(",")):
                yield f"{node}: the input {name} was {kind} and is {found}"
        for name in set(has["needed"]) - had["inputs"].keys():
            yield f"{node}: the input {name} is new and has to be given"
        for was, found in zip_longest(had["outputs"], has["outputs"][: len(had["outputs"])]):
            if was != found:
                yield f"{node}: the output {was} is {found}"


def broken_by_library(before: Promise, now: Promise) -> Iterator[str]:
    """What code for the version before can call and no longer finds."""
    for name, had in before.items():
        if name not in now:
            yield f"{name} is gone"
            continue
        has = now[name] or {}
        for parameter in (had or {}).keys() - has.keys():
            yield f"{name}: the parameter {parameter} is gone"
        for parameter, needed in has.items():
            if needed and not (had or {}).get(parameter):
                yield f"{name}: the parameter {parameter} has to be given"


def read() -> Promise:
    return json.loads(FILE.read_text(encoding="utf-8"))


def main() -> None:
    base = install(base_directory(ROOT / ".cache" / facts().host / "promises", ROOT))
    nodes = boot_in_process(facts().comfyui, base)
    promise = {"library": of_library(), "nodes": of_nodes(nodes.NODE_CLASS_MAPPINGS)}
    FILE.write_text(json.dumps(promise, indent=1) + "\n", encoding="utf-8")
    print(FILE.relative_to(ROOT))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.harness.promises --write")
    main()
