"""Nothing is gone that the last version promised; docs/versions.md says what that is."""

from __future__ import annotations

import copy

import pytest
from hosting import Host

from tests.harness.promises import broken_by_library, broken_by_nodes, of_library, of_nodes, read

pytestmark = pytest.mark.host
HINT = (
    "a version that may do this says so in the changelog and runs `python -m tests.harness.promises --write`"
)


def test_what_was_promised_is_there(host: Host) -> None:
    before = read()
    assert list(broken_by_nodes(before["nodes"], of_nodes(host.nodes.NODE_CLASS_MAPPINGS))) == [], HINT
    assert list(broken_by_library(before["library"], of_library())) == [], HINT


def test_what_is_broken_is_found() -> None:
    before = read()
    shown = before["nodes"]["LycorisInspect"]["outputs"]
    nodes, library = copy.deepcopy(before["nodes"]), copy.deepcopy(before["library"])
    del nodes["LycorisPlan"]
    del nodes["LycorisAdapterRows"]["inputs"]["rows"]
    nodes["LycorisApplyStack"]["inputs"]["stack"] = "LYCORIS_STACK"
    nodes["LycorisInspect"] |= {"needed": ["colour"], "outputs": []}
    assert sorted(broken_by_nodes(before["nodes"], nodes)) == [
        "LycorisAdapterRows: the input rows was STRING and is None",
        "LycorisApplyStack: the input stack was LYCORIS_STACK,LORA_STACK and is LYCORIS_STACK",
        "LycorisInspect: the input colour is new and has to be given",
        *(f"LycorisInspect: the output {one} is None" for one in shown),
        "the node LycorisPlan is gone",
    ]
    del library["probe"], library["load_adapter"]["path"]
    library["load_adapter"]["file"] = True
    assert sorted(broken_by_library(before["library"], library)) == [
        "load_adapter: the parameter file has to be given",
        "load_adapter: the parameter path is gone",
        "probe is gone",
    ]
