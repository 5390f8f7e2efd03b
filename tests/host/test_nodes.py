"""What the nodes promise besides exact weights: reports, strictness, help, and no needless reading."""

from __future__ import annotations

import importlib
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, Patched
from safetensors.torch import load_file, save_file

from tests.harness.assets import assets
from tests.harness.facts import NODES, ROOT
from tests.harness.opens import held, opened

pytestmark = pytest.mark.host


@pytest.mark.parametrize("node", NODES)
def test_every_input_and_output_is_explained(host: Host, node: str) -> None:
    schema = host.nodes.NODE_CLASS_MAPPINGS[node].GET_SCHEMA()
    assert schema.category == "lycoris" and schema.description and schema.search_aliases
    assert schema.node_id == node and schema.display_name
    for part in (*schema.inputs, *schema.outputs):
        assert part.tooltip and len(part.tooltip) > 10, part.id
    page = ROOT / "lycoris_nodes" / "web" / "docs" / f"{node}.md"
    assert len(page.read_text(encoding="utf-8")) > 500


def test_the_pack_registers_these_nodes_and_no_others(host: Host) -> None:
    found = {name for name in host.nodes.NODE_CLASS_MAPPINGS if name.startswith("Lycoris")}
    assert found == set(NODES)


def test_the_report_tells_what_was_applied(host: Host, plain: Patched) -> None:
    (stack,) = host.run(
        "LycorisWeightBlocks", host.stack(("lora", 0.8, 0.7), ("lokr", 1.0, 1.0)), "mid = 0.5\nin.99 = 2"
    )
    report = host.apply(plain, stack).report
    for part in (
        "lora.safetensors",
        "lokr.safetensors",
        "dialect kohya; 191 lora (rank 4; alpha 2 x171, 3 x20)",
        "strength 0.8, text encoder 0.7; rules: mid = 0.5; in.99 = 2",
        "applied 191 of 191 layers",
        "1 rules match none of its layers:\n    in.99 = 2",
    ):
        assert part in report


def test_without_a_clip_text_encoder_layers_are_reported_and_strict_does_not_mind(
    host: Host, plain: Patched
) -> None:
    patched = host.apply(plain, host.stack(("lora", 1.0, 1.0)), clip=False, strict=True)
    assert patched.clip is None
    assert "applied 119 of 191 layers" in patched.report
    assert "72 layers left out, they belong to the text encoder: no CLIP is connected" in patched.report


def partial(path: Path) -> None:
    """Write an adapter in which one layer has a name that no layer of the model has."""
    tensors = load_file(assets() / "loras" / "lora.safetensors")
    renamed = {
        key.replace("attn1_to_q", "attn1_to_x") if "mid_block" in key else key: tensor
        for key, tensor in tensors.items()
    }
    save_file(renamed, path)


def test_every_node_checks_its_inputs(host: Host) -> None:
    """`inputs.checked` is on each of them, and the cases below try it."""
    nodes = [kind for name, kind in host.nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("Lycoris")]
    assert nodes
    assert [kind.__name__ for kind in nodes if not hasattr(kind.execute, "__wrapped__")] == []


@pytest.mark.parametrize(
    ("node", "inputs", "words"),
    [
        ("LycorisApplyStack", {"mode": 2}, ("`mode`", "found 2", "a text")),
        ("LycorisApplyStack", {"mode": "mix"}, ("`mode`", "'mix'", "merge, bypass, auto")),
        ("LycorisApplyStack", {"strict": "no"}, ("`strict`", "true or false")),
        ("LycorisApplyStack", {"model": None}, ("`model`", "found None")),
        ("LycorisLoadAdapter", {"strength_clip": math.nan}, ("`strength_clip`", "found nan", "finite")),
        ("LycorisLoadAdapter", {"strength_model": 10**400}, ("`strength_model`", "finite")),
        ("LycorisLoadAdapter", {"file": ["lora.safetensors"]}, ("`file`", "found a list", "a text")),
        ("LycorisWeightBlocks", {"rules": 1.0}, ("`rules`", "found 1.0", "a text")),
        ("LycorisCombineStacks", {"stacks": {"stack0": None, "stack1": 5}}, ("`stack1`", "LyCORIS stack")),
        ("LycorisSaveAdapter", {"dialect": "a1111"}, ("`dialect`", "'a1111'", "kohya")),
        ("LycorisSaveCheckpoint", {"dtype": "fp4"}, ("`dtype`", "'fp4'", "as in the file")),
    ],
    ids=str,
)
def test_an_input_of_another_type_is_named(
    host: Host, plain: Patched, node: str, inputs: dict[str, Any], words: tuple[str, ...]
) -> None:
    """A link can bring what ComfyUI would refuse as a literal."""
    empty = host.ops.Stack()
    right = {
        "LycorisApplyStack": {
            "model": plain.model,
            "stack": empty,
            "mode": "merge",
            "strict": True,
        },
        "LycorisLoadAdapter": {"file": "lora.safetensors", "strength_model": 1, "strength_clip": 1},
        "LycorisWeightBlocks": {"stack": empty, "rules": ""},
        "LycorisCombineStacks": {},
        "LycorisSaveAdapter": {"stack": empty, "dtype": "as in the file", "filename_prefix": "x"},
        "LycorisSaveCheckpoint": {
            "base": "checkpoints/base.safetensors",
            "stack": empty,
            "filename_prefix": "x",
            "strict": False,
        },
    }
    with pytest.raises(host.ops.LycorisError) as raised:
        host.run(node, **{**right[node], **inputs})
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_a_partial_match_runs_and_says_so_and_strict_refuses_it(
    host: Host, plain: Patched, lora_file: Callable[[str, Any], str]
) -> None:
    stack = host.stack((lora_file("partial.safetensors", partial), 1.0, 1.0))
    report = host.apply(plain, stack, strict=False).report
    assert "applied 190 of 191 layers" in report
    assert "1 layers cannot be matched" in report and "attn1_to_x: no layer of that name" in report
    assert "nearest: diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_" in report
    with pytest.raises(Exception, match=r"partial\.safetensors.*attn1_to_x.*strict"):
        host.apply(plain, stack, strict=True)


def test_a_file_is_read_once_for_all_nodes_and_strengths(host: Host, plain: Patched) -> None:
    source = host.base / "models" / "loras" / "once.safetensors"
    shutil.copy(assets() / "loras" / "lora.safetensors", source)
    host.apply(plain, host.stack((source.name, 1.0, 1.0)))
    first = opened(source)
    assert first >= 1
    for strength in (0.5, -1.0):
        host.apply(plain, host.stack((source.name, strength, strength), (source.name, 0.1, 0.1)))
    host.apply(plain, host.run("LycorisWeightBlocks", host.stack((source.name, 1.0, 1.0)), "in = 0.5")[0])
    # Other strengths, a second entry and block rules need no second reading.
    assert opened(source) == first
    source.unlink()


def test_a_changed_file_is_noticed(host: Host, plain: Patched) -> None:
    source = host.base / "models" / "loras" / "changing.safetensors"
    shutil.copy(assets() / "loras" / "lora.safetensors", source)
    node = host.nodes.NODE_CLASS_MAPPINGS["LycorisLoadAdapter"]
    key = "diffusion_model.input_blocks.0.0.weight"

    def change() -> torch.Tensor:
        patch = host.apply(plain, host.stack((source.name, 1.0, 1.0))).patches[key][0][1]
        weight = torch.zeros(patch.weights[0].shape)
        return patch.calculate_weight(weight, key, 1.0, 1.0, None, None)

    before, print_before = change(), node.fingerprint_inputs(file=source.name)
    tensors = load_file(source)
    source.unlink()
    save_file({k: t * 2 if k.endswith("lora_up.weight") else t for k, t in tensors.items()}, source)
    # Set a time of change that certainly differs.
    os.utime(source, ns=(1, 1))
    assert node.fingerprint_inputs(file=source.name) != print_before
    torch.testing.assert_close(change(), 2 * before)
    source.unlink()


def test_no_mapping_and_no_file_is_held_between_runs(host: Host, plain: Patched) -> None:
    host.apply(plain, host.stack(("loha", 1.0, 1.0)))
    assert not held(assets() / "loras" / "loha.safetensors")


def test_a_second_copy_of_the_pack_in_one_process_does_no_harm(host: Host, plain: Patched) -> None:
    import asyncio

    link = host.base / "second-copy"
    if not link.exists():
        link.symlink_to(ROOT, target_is_directory=True)
    loaded = asyncio.new_event_loop().run_until_complete(
        # Nodes of these names are registered already.
        host.nodes.load_custom_node(str(link), module_parent="custom_nodes", ignore=set(NODES))
    )
    assert loaded
    ours = importlib.import_module("lycoris_ops")
    assert ours.Stack is not host.ops.Stack
    assert host.apply(plain, host.stack(("lora", 1.0, 1.0))).patches
    link.unlink()


def test_a_new_strength_reads_no_layer_and_makes_no_plan(
    host: Host, plain: Patched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The groups of every plan must be the same objects as in the first run."""
    plans = importlib.import_module(f"{host.pack.__name__}.lycoris_ops.patch.plan")
    adapters = importlib.import_module(f"{host.pack.__name__}.lycoris_ops.adapters.adapter")
    made: list[str] = []
    build, layer = plans.PatchPlan.build.__func__, adapters.Adapter.layer
    monkeypatch.setattr(
        plans.PatchPlan, "build", classmethod(lambda *args: made.append("plan") or build(*args))
    )
    monkeypatch.setattr(
        adapters.Adapter, "layer", lambda *args, **options: made.append("layer") or layer(*args, **options)
    )
    entries = (("lora", 0.31, 0.2), ("loha", 0.5, 0.5), ("lokr", -0.4, 0.3))
    first = host.apply(plain, host.stack(*entries))
    counted = len(made)
    again = host.apply(plain, host.stack(*((name, 2 * one, other) for name, one, other in entries)))
    assert len(made) == counted
    assert first.patches.keys() == again.patches.keys()
    for key, (entry,) in again.patches.items():
        old = first.patches[key][0][1]
        assert entry[1].weights[0].groups is old.weights[0].groups
        factor = 2.0 if key.startswith("diffusion_model.") else 1.0
        assert entry[1].weights[2] == tuple(factor * value for value in old.weights[2])
    # Another stack needs plans of its own.
    host.apply(plain, host.stack(*entries[:2]))
    assert len(made) > counted
