"""The code and the prompt on the page for authors of packs, in the real host."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
from hosting import LOKR, LORA, Host

from tests.harness.facts import ROOT, facts
from tests.harness.launch import Server

pytestmark = pytest.mark.host


def block(language: str) -> str:
    page = (ROOT / "docs" / "pack-authors.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)
    return str(found)


def test_a_node_of_ones_own_scales_a_stack(host: Host) -> None:
    names: dict[str, Any] = {}
    exec(block("python"), names)
    stack = host.stack((LORA, 1.0, 0.5), (LOKR, -0.4, -0.4))
    (halved,) = names["NODE_CLASS_MAPPINGS"]["ScaleStack"]().run(stack, 0.5)
    assert [(one.strength, one.strength_of("te")) for one in halved] == [(0.5, 0.25), (-0.2, -0.2)]
    # The module that the page names is the library.
    assert sys.modules[type(stack).__module__.partition(".lycoris_ops")[0] + ".lycoris_ops"] is host.ops


def test_the_prompt_for_the_api_applies_both_files(host: Host) -> None:
    prompt = json.loads(block("json"))["prompt"]
    named = {"style.safetensors": LORA, "person.safetensors": LOKR}
    for name, file in named.items():
        assert name in prompt["2"]["inputs"]["rows"]
        prompt["2"]["inputs"]["rows"] = prompt["2"]["inputs"]["rows"].replace(name, file)
    prompt["6"]["inputs"] |= {"width": 64, "height": 64}
    prompt["7"]["inputs"]["steps"] = 1
    with Server(facts().comfyui, host.base) as server:
        run = server.queue(prompt)
    assert not run.error, run.error
    assert "2 files" in run.outputs["3"]["text"][0]
    assert run.outputs["3"]["lycoris"][0]["state"] == "all"
    assert run.outputs["9"]["images"]
