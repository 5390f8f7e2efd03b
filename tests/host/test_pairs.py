"""Files that are published in pairs, one for each of two experts: who belongs to whom, and who gets which."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosting import LOKR, LORA, Host, ask, text

from tests.harness.facts import ROOT

pytestmark = pytest.mark.host

ENDING = ".safetensors"
BOTH = re.compile(r"\{(.*)\|(.*)\}")


def published() -> list[tuple[str, str]]:
    """The names of pairs, each with the one for high noise first."""
    lines = (ROOT / "tests" / "harness" / "pairs.txt").read_text(encoding="utf-8").splitlines()
    return [
        (BOTH.sub(r"\1", line) + ENDING, BOTH.sub(r"\2", line) + ENDING)
        for line in lines
        if not line.startswith("#")
    ]


PAIRS = published()
NAMES = [name for pair in PAIRS for name in pair]
UNSURE = ("wriggling_i2v", "AAG_MuscleMommy", "wan22-jellyhips", "i merged_CB")
"""Pairs that were not trained as long, or that single letters tell apart."""
ALONE = [
    *("flow_noise", "slow_motion", "highlight", "high_noise_to_low_noise", "Wan21_lightx2v_rank32", "lenovo"),
    # Where several names fit one, nobody knows which is meant. Names may differ in nothing but one word.
    *(
        "ink_high_e10",
        "ink_high_e20",
        "ink_low_e30",
        "JIGGLEHIGHV3",
        "JIGGLEV3LOW",
        "film_v1_high",
        "film_v2_low",
    ),
    # Letters with another meaning, and files in different folders.
    *("vit_h", "clip_l", "a/mist_high", "b/mist_low"),
]


def test_every_published_pair_is_found_among_all(host: Host) -> None:
    pairs = host.module("lycoris_nodes.files.pairs")
    assert len(PAIRS) >= 60 and len({*NAMES}) == len(NAMES)
    names = [*NAMES, *(f"{name}{ENDING}" for name in ALONE)]
    found = {name: partner for name in names if (partner := pairs.partner_of(name, names))}
    wanted = {high: (low, "low noise") for high, low in PAIRS}
    wanted |= {low: (high, "high noise") for high, low in PAIRS}
    assert {name: partner[:2] for name, partner in found.items()} == wanted
    assert {name for name, partner in found.items() if not partner.sure} == {
        name for name in NAMES if name.startswith(UNSURE)
    }
    # As Windows writes them.
    names = [name.replace("/", "\\") for name in names]
    assert all(pairs.partner_of(name, names) for name in names[: len(NAMES)])


def test_a_pair_with_several_candidates_is_none(host: Host) -> None:
    partner_of = host.module("lycoris_nodes.files.pairs").partner_of
    names = [f"ink_{word}{ENDING}" for word in ("high_noise", "low_noise", "high_noise (1)", "low_noise (1)")]
    assert [partner_of(name, names).file for name in names] == [names[at] for at in (1, 0, 3, 2)]
    assert partner_of(names[2], [names[0], *names[2:3], names[1]]) is None


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", "high noise"),
        ("Wan2_2-I2V-A14B-LOW_fp8_e4m3fn_scaled_KJ.safetensors", "low noise"),
        ("LowNoise/Wan2.2-T2V-A14B-LowNoise-Q4_K_M.gguf", "low noise"),
        ("smoothMixWan2214BI2V_t2vHighV30.safetensors", "high noise"),
        ("DasiwaWAN22I2V14BSynthseduction_q4Low.gguf", "low noise"),
        ("high_noise_model/diffusion_pytorch_model.safetensors", "high noise"),
        ("wan2.2_ti2v_5B_fp16.safetensors", None),
        ("HighNoise/wan_low_noise.safetensors", None),
        ("Wan2.2_Remix_i2v_14b_flow_noise.safetensors", None),
        ("", None),
    ],
)
def test_a_model_says_which_expert_it_is(host: Host, name: str, expert: str | None) -> None:
    assert host.module("lycoris_nodes.files.pairs").expert_of(name) == expert


def wan(path: Path) -> dict[str, torch.Tensor]:
    key = "diffusion_model.blocks.0.self_attn.q"
    return {f"{key}.lora_A.weight": torch.ones(2, 8), f"{key}.lora_B.weight": torch.ones(8, 2)}


def test_the_page_is_told_of_the_partner(host: Host, lora_file: Callable[[str, Any], str]) -> None:
    """Only for models with two experts: for others, high and low mean something else."""
    tensors = wan(host.base)
    high, low = (lora_file(f"Ink{word}Noise.safetensors", tensors) for word in ("High", "Low"))
    alone = lora_file("rain_low.safetensors", tensors)
    other = {
        key.replace("blocks.0.self_attn.q", "input_blocks.1.1.proj_in"): value
        for key, value in tensors.items()
    }
    poly = [lora_file(f"{word}_poly.safetensors", other) for word in ("high", "low")]

    def told(file: str) -> tuple[Any, Any]:
        found = json.loads(ask("/lycoris/adapters/about", file=file)[2])
        return found["expert"], found["pair"]

    both = {"file": high, "low_noise": low, "sure": True}
    assert told(high) == ("high noise", both) and told(low) == ("low noise", both)
    assert told(alone) == ("low noise", None)
    assert [told(file) for file in poly] == [(None, None)] * 2


def pair(host: Host, **row: Any) -> Any:
    return host.run("LycorisAdapterRows", text({"file": LORA, "low_noise": LOKR, **row}))[0]


def test_each_expert_gets_its_own_file(host: Host, model_file: Callable[..., Path]) -> None:
    """The name of the model's file says which expert it is, or else the user's choice."""
    stack = pair(host, strength_model=0.5, rules="mid = 0.5")
    single = {
        expert: host.run(
            "LycorisAdapterRows", text({"file": file, "strength_model": 0.5, "rules": "mid = 0.5"})
        )[0]
        for expert, file in (("high noise", LORA), ("low noise", LOKR))
    }

    def patches(on: Any, stack: Any, **inputs: Any) -> tuple[dict[str, Any], str]:
        model, _, report = host.run("LycorisApplyStack", on.model, stack, **inputs)
        return {key: list(map(str, found)) for key, found in kept(model).items()}, report

    def kept(model: Any) -> dict[str, list[Any]]:
        return {key: [one[1].weights[2], *one[1].loaded_keys] for key, (one,) in model.patches.items()}

    base = (host.base / "models" / "checkpoints" / "base.safetensors").resolve()
    for expert, alone in single.items():
        name = f"tiny_{expert.replace(' ', '_')}.safetensors"
        path = model_file(f"checkpoints/{name}", lambda path: path.symlink_to(base))
        wanted, _ = patches(host.checkpoint(path.name), alone)
        found, report = patches(host.checkpoint(path.name), stack)
        assert found == wanted and len(found) > 10
        assert report.startswith(
            f"This model is the {expert.replace(' ', '-')} expert, by the name {name}: 1 pair"
        )
        chosen, report = patches(host.checkpoint(), stack, expert=expert)
        assert chosen == wanted and "as chosen" in report
    unknown, report = patches(host.checkpoint(), stack)
    assert unknown == patches(host.checkpoint(), single["high noise"])[0]
    assert report.startswith(
        "Nothing tells which of two experts this model is: 1 pair gave the file for high"
    )
    # Without pairs nothing is said of experts.
    assert "expert" not in patches(host.checkpoint(), single["low noise"])[1]


def test_the_expert_is_told_by_the_loader_before_it(host: Host) -> None:
    """The loader is of another pack, which does not tell the host the file."""
    of_expert = host.module("lycoris_nodes.apply.experts").of_expert
    prompt = {
        "1": {"inputs": {"unet_name": "LowNoise/Wan2.2-T2V-LowNoise-Q4_K_M.gguf"}},
        "2": {"inputs": {"model": ["1", 0], "lora_name": "style_high_noise.safetensors"}},
        "3": {"inputs": {"model": ["2", 0], "shift": 8.0}},
        "4": {"inputs": {"model": ["3", 0], "stack": ["9", 0]}},
    }
    stack, said, known = of_expert(
        pair(host), "auto", SimpleNamespace(), SimpleNamespace(prompt=prompt, unique_id="4")
    )
    assert [entry.adapter.name for entry in stack] == [LOKR] and known
    assert "low-noise expert, by the name Wan2.2-T2V-LowNoise-Q4_K_M.gguf" in said
    circle = {"4": {"inputs": {"model": ["4", 0]}}}
    found = of_expert(pair(host), "auto", SimpleNamespace(), SimpleNamespace(prompt=circle, unique_id="4"))
    assert not found[2]


def test_a_pair_stays_one_row(host: Host) -> None:
    """In every node that changes strengths, and in a resize of both."""
    stack = host.scheduled(host.run("LycorisWeightBlocks", pair(host), "mid = 0.5")[0], "constant 0.5")
    (entry,) = host.run("LycorisMask", stack, frames="0-1")[0]
    assert [adapter.name for adapter in entry.adapters] == [LORA, LOKR] and entry.mask and entry.rules
    (entry,) = host.run("LycorisResizeAdapter", pair(host), "rank 1")[0]
    assert [adapter.report is not None for adapter in entry.adapters] == [True, True]


def test_what_holds_one_file_refuses_a_pair(host: Host) -> None:
    stack = pair(host)
    with pytest.raises(host.ops.LycorisError, match=r"a pair of adapters .*Split into two rows"):
        host.run("LycorisSaveAdapter", stack, filename_prefix="pair")
    with pytest.raises(host.ops.LycorisError, match="a pair of adapters"):
        host.ops.merge_adapters(stack)
    report = host.run("LycorisToLoraStack", stack)[2]
    assert "lora_stack: cannot be made" in report and "cannot hold a pair of files" in report


def test_a_file_for_low_noise_that_is_gone_is_named(host: Host) -> None:
    rows = text({"file": LORA}, {"file": LORA, "low_noise": "gone.safetensors"})
    said = str(host.nodes.NODE_CLASS_MAPPINGS["LycorisAdapterRows"].validate_inputs(rows))
    assert said.startswith("row 2: ") and "gone.safetensors" in said
