"""What the page is told of the blocks of a row: its bars, and what rules do to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hosting import Host, ask, told
from safetensors.torch import load_file, save_file

from tests.harness.assets import assets

pytestmark = pytest.mark.host
LORA = "lora.safetensors"


def test_the_bars_of_a_row_are_those_of_its_model(host: Host, lora_file: Callable[[str, Any], str]) -> None:
    """The page gets the bars measured so far. Without a linked model, one of the file's family stands in."""

    def bars(**question: Any) -> dict[str, Any]:
        question = {"file": LORA, "model": [], "clip": [], **question}
        while (found := json.loads(ask("/lycoris/bars", json.dumps(question))[2])).get("done", 0) < found.get(
            "of", 0
        ):
            assert not found["presets"]
        return found

    def weights(rules: str, file: str = LORA) -> dict[str, Any]:
        question = {"file": file, "model": [], "clip": [], "rules": rules}
        return json.loads(ask("/lycoris/rules", json.dumps(question))[2])

    connected = bars(model=["base.safetensors"], clip=["base.safetensors"])
    assert (connected["model"], connected["connected"]) == ("checkpoints/base.safetensors", True)
    single = [bar for group in connected["groups"] if group["sort"] != "kinds" for bar in group["bars"]]
    assert sum(bar["share"] for bar in single) == pytest.approx(1)
    assert sum(bar["mine"] for bar in single) == connected["of"] == 190
    assert {"ALL", "OUTALL"} <= connected["presets"].keys()
    likely = bars()
    assert (likely["model"], likely["connected"]) == ("checkpoints/base.safetensors", False)
    assert likely["groups"] == connected["groups"]
    other = lora_file("other.safetensors", told(**{"modelspec.architecture": "flux-1-dev/lora"}))
    alone = bars(file=other)
    assert (alone["model"], alone["connected"]) == ("", False) and alone["groups"]
    assert "not there" in bars(file="gone.safetensors")["error"]
    # A change that depends on the weights is measured with those in the model's file.
    tensors = load_file(assets() / "loras" / LORA)
    ends = {key.removesuffix(".lora_up.weight"): up for key, up in tensors.items() if "lora_up" in key}
    scales = {f"{name}.dora_scale": torch.ones(len(up), 1) for name, up in ends.items() if up.ndim == 2}
    dora = lora_file("dora.safetensors", lambda path: save_file({**tensors, **scales}, path))
    measured = bars(file=dora)
    assert scales and not measured["unmeasured"]
    shares = [
        bar["share"] for group in measured["groups"] if group["sort"] != "kinds" for bar in group["bars"]
    ]
    assert sum(shares) == pytest.approx(1) and shares != [bar["share"] for bar in single]

    found = weights("in.1-2 = 0.5\nattn = *0.5\nmlp = 0.25")
    assert found["weights"]["in.1"][1:] == [0.25, 0.5] and not found["kinds"]
    # The bars of blocks show weights without the scales of kinds at the end, and the button those with them.
    scaled, plain = weights("in.1-2 = 0.5\nattn = *0.5"), weights("in.1-2 = 0.5")
    assert scaled["weights"] == plain["weights"] and scaled["weights"]["in.1"] == [0.5, 0.5, 0.5]
    assert scaled["kinds"] == {"attn": 0.5} and scaled["line"][1] < plain["line"][1] == 0.5
    question = {
        "file": LORA,
        "model": [],
        "clip": [],
        "rules": "in.1-2 = 0.5",
        "weights": {"mid": 0, "attn": 2},
    }
    answer = json.loads(ask("/lycoris/paint", json.dumps(question))[2])
    assert answer == {"rules": "in.1-2 = 0.5\nmid = 0\nattn = *2"}
    # Four blocks, the middle, four blocks; what is beside them; one text encoder.
    assert len(found["line"]) == 11 and found["line"][0] == 1
    assert weights("foo = 0.5")["idle"]
    assert "line 2" in weights("in.1 = 0.5\nin.2")["error"]
    assert "does not fit" in weights("1,0,0,0,1")["error"]
    assert weights("in.1 = 0.5", "gone.safetensors")["line"] == []
