"""What the nodes promise besides exact weights: reports, strictness, help, and no needless reading."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hosting import Host, Patched
from kinds import lora
from safetensors.torch import load_file, save_file

from tests.harness.additions import added, outcome
from tests.harness.assets import assets
from tests.harness.facts import NODES, ROOT
from tests.harness.opens import opened
from tools.pictures import names_in

CATEGORIES = {f"lycoris/{part}" for part in ("load", "shape", "save", "train")}

pytestmark = pytest.mark.host


@pytest.mark.parametrize("node", NODES)
def test_every_input_and_output_is_explained(host: Host, node: str) -> None:
    schema = host.nodes.NODE_CLASS_MAPPINGS[node].GET_SCHEMA()
    assert schema.category in CATEGORIES and schema.description and schema.search_aliases
    assert schema.node_id == node and schema.display_name
    for part in (*schema.inputs, *schema.outputs):
        assert part.tooltip and len(part.tooltip) > 10, part.id
    page = ROOT / "lycoris_nodes" / "web" / "docs" / f"{node}.md"
    assert len(page.read_text(encoding="utf-8")) > 500


@pytest.mark.parametrize("node", NODES)
def test_the_picture_on_the_help_page_is_of_the_node_as_it_is(host: Host, node: str) -> None:
    page = ROOT / "lycoris_nodes" / "web" / "docs" / f"{node}.md"
    assert f"](pictures/{node}.webp)" in page.read_text(encoding="utf-8")
    schema = host.nodes.NODE_CLASS_MAPPINGS[node].GET_SCHEMA()
    wanted = [part.id for part in schema.inputs] + [part.display_name for part in schema.outputs]
    assert sorted(names_in(node)) == sorted(wanted), "run `make pictures`"


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
        "names of kohya; 190 lora (rank 4; alpha 2 x170, 3 x20)",
        "strength 0.8, text encoder 0.7; rules: mid = 0.5; in.99 = 2",
        "applied 190 of 190 layers",
        "1 pattern of the rules matches nothing:\n"
        "    in.99: the model has nothing of that name; the model has in.0-",
    ):
        assert part in report


def test_every_node_checks_its_inputs(host: Host) -> None:
    """`checks.checked` is on each of them, and the cases below try it."""
    nodes = [kind for name, kind in host.nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("Lycoris")]
    assert nodes
    assert [kind.__name__ for kind in nodes if not hasattr(kind.execute, "__wrapped__")] == []
    for kind in nodes:
        assert kind.ACCEPT_ALL_INPUTS, "the host hands it what is no input"
        first = kind.GET_SCHEMA().inputs[0].id
        for name, words in (("zzz", "Take it out"), (f"{first}x", f"Is it {first}?")):
            with pytest.raises(host.ops.LycorisError, match=f"{name}: there is no such input") as raised:
                kind.execute(**{name: 3})
            assert words in str(raised.value)


@pytest.mark.parametrize(
    ("node", "inputs", "words"),
    [
        ("LycorisApplyStack", {"mode": 2}, ("`mode`", "found 2", "a text")),
        ("LycorisApplyStack", {"mode": "mix"}, ("`mode`", "'mix'", "merge, bypass, auto")),
        ("LycorisApplyStack", {"strict": "no"}, ("`strict`", "true or false")),
        ("LycorisLoadAdapter", {"strength_clip": math.nan}, ("`strength_clip`", "found nan", "finite")),
        ("LycorisLoadAdapter", {"strength_model": 10**400}, ("`strength_model`", "finite")),
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
    host: Host, plain: Patched, stack_of: Callable[..., Any]
) -> None:
    stack = stack_of({name: lora((1280, 320)) for name in ("time_embed.0", "time_embed.x")})
    report = host.apply(plain, stack, strict=False).report
    assert "applied 1 of 2 layers" in report
    assert "1 layer cannot be matched" in report and "time_embed.x: no layer of that name" in report
    with pytest.raises(Exception, match=r"stack_0\.safetensors.*time_embed\.x.*strict"):
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


def test_a_changed_file_is_noticed(host: Host) -> None:
    source = host.base / "models" / "loras" / "changing.safetensors"
    shutil.copy(assets() / "loras" / "lora.safetensors", source)
    node = host.nodes.NODE_CLASS_MAPPINGS["LycorisLoadAdapter"]
    before = node.fingerprint_inputs(file=source.name)
    tensors = load_file(source)
    source.unlink()
    save_file({k: t * 2 if k.endswith("lora_up.weight") else t for k, t in tensors.items()}, source)
    # Set a time of change that certainly differs.
    os.utime(source, ns=(1, 1))
    assert node.fingerprint_inputs(file=source.name) != before


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
    adapters = importlib.import_module(f"{host.pack.__name__}.lycoris_ops.reading.adapter")
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


def test_nothing_that_is_switched_off_breaks_anything(host: Host, plain: Patched) -> None:
    """A stack may be missing, Combine takes none, and a loader that is off reads nothing."""
    (empty,) = host.run("LycorisCombineStacks", stacks={"stack0": None})
    assert len(empty) == 0
    stack = host.stack(("lora", 0.5, 0.5))
    (passed,) = host.run("LycorisLoadAdapter", "nowhere.safetensors", 1.0, 1.0, stack, on=False)
    assert passed is stack
    (one,) = host.run("LycorisCombineStacks", stacks={"stack0": None, "stack4": stack})
    assert [entry.name for entry in one] == ["lora.safetensors"]
    model, clip, report = host.run("LycorisApplyStack", plain.model, clip=plain.clip)
    assert (
        model is plain.model
        and clip is plain.clip
        and report.startswith("Nothing was changed: no stack arrived")
    )
    *_, report = host.run("LycorisApplyStack", plain.model, empty, clip=plain.clip)
    assert report == "Nothing was changed: the stack is empty."


def test_the_first_line_says_whether_all_was_applied(
    host: Host, plain: Patched, lora_file: Callable[[str, Any], str]
) -> None:
    node = host.nodes.NODE_CLASS_MAPPINGS["LycorisApplyStack"]

    def shown(stack: Any, **inputs: Any) -> tuple[str, str, Any]:
        out = node.execute(plain.model, stack, **inputs)
        (state,) = out.ui["lycoris"]
        return state["state"], out.ui["text"][0].partition("\n")[0], state["whole"]

    both = host.stack(("lora", 1.0, 1.0), ("lokr", 1.0, 1.0))
    assert shown(both, clip=plain.clip)[:2] == ("all", "All of it was applied: 380 of 380 layers of 2 files.")
    state, first, whole = shown(host.stack(("lora", 1.0, 1.0)), strict=True)
    assert state == "partly" and "72 layers are left out" in first
    assert "72 layers left out, they belong to the text encoder: no CLIP is connected" in whole[0]
    # What the box cuts short is whole in the part that is folded and in the output.
    assert whole[0].count("lora_te_text_model") == 72
    (ruled,) = host.run("LycorisWeightBlocks", both, "nowhere = 2")
    assert "1 pattern of the rules matches nothing" not in shown(both, clip=plain.clip)[1]
    assert "1 pattern of the rules matches nothing" in shown(ruled, clip=plain.clip)[1]
    # What was switched off by somebody is said as that, and everything asked for was done.
    (ruled,) = host.run("LycorisWeightBlocks", host.stack(("lora", 1.0, 1.0)), "mid = 0")
    asked = ("all", "Applied as asked: 172 layers of 1 file, 18 switched off by rules.")
    assert shown(ruled, clip=plain.clip)[:2] == asked
    details = node.execute(plain.model, ruled, clip=plain.clip).args[-1]
    assert "\n  applied 172 of 190 layers\n  18 switched off by rules" in details
    asked = ("all", "Applied as asked: 118 layers of 1 file, 72 at strength 0.")
    assert shown(host.stack(("lora", 1.0, 0.0)), clip=plain.clip)[:2] == asked
    (silent,) = host.run("LycorisWeightBlocks", both, "", "NONE")
    assert shown(silent, clip=plain.clip)[:2] == (
        "nothing",
        "Nothing was changed: no layer of 2 files has a strength other than 0.",
    )
    (_, _, handed) = host.run("LycorisToLoraStack", host.stack(("lora", 1.0, 1.0)))
    assert handed.startswith("lora_stack: 1 row\n")
    folder = host.base / "models" / "loras" / "style"
    folder.mkdir(exist_ok=True)
    shutil.copy(assets() / "loras" / "lora.safetensors", folder / "alice.safetensors")
    (stack,) = host.run("LycorisLoadAdapter", "style/alice.safetensors", 1.0, 1.0)
    assert "\nstyle/alice.safetensors\n" in host.apply(plain, stack).report


def test_presets_and_rules_give_the_strengths_that_they_say(host: Host, plain: Patched) -> None:
    """A preset of the user's file, then rules; strengths by hand."""
    own = host.base / "user" / "lycoris_presets.txt"
    own.parent.mkdir(exist_ok=True)
    own.write_text("[mine]\nin = 0.5\nout = 0..1\n\n[broken]\nmid 3\n\n[INS]\nin = 1\n", encoding="utf-8")
    schema = host.nodes.NODE_CLASS_MAPPINGS["LycorisWeightBlocks"].define_schema()
    options = next(one for one in schema.inputs if one.id == "preset").options
    assert options[0] == "no preset" and "mine" in options
    # One of the library's that is in the user's file too is listed once.
    assert options.count("INS") == 1
    (fault,) = [option for option in options if "broken" in option]
    assert "line 6, column 1" in fault
    stack = host.stack(("lora", 0.8, 0.6))
    (weighted,) = host.run("LycorisWeightBlocks", stack, "in.1 = *-3\nte = 0.25\nattn = off", "mine")
    with pytest.raises(host.ops.LycorisError, match=r"a preset cannot be read.*line 6"):
        host.run("LycorisWeightBlocks", stack, "", fault)
    # By its name, from the text, from a saved workflow's combo or from a row: the line of the file is named.
    rows = json.dumps({"version": 1, "rows": [{"file": host.file("lora"), "rules": "broken"}]})
    for node, inputs in (
        ("LycorisWeightBlocks", {"rules": "broken"}),
        ("LycorisWeightBlocks", {"rules": "", "preset": "broken"}),
        ("LycorisAdapterRows", {"rows": rows}),
    ):
        with pytest.raises(host.ops.LycorisError, match=r"lycoris_presets.txt: broken: line 6, column 1 "):
            host.run(node, **inputs)
    own.write_bytes("[mine]\nin = 0.5".encode("utf-16"))
    (fault,) = host.module("lycoris_nodes.stacks.presets").own_presets().faults
    assert "user/lycoris_presets.txt" in fault and str(host.base) not in fault
    for inputs in ({"rules": "mine"}, {"rules": "", "preset": "mine"}):
        with pytest.raises(
            host.ops.LycorisError, match=r"lycoris_presets.txt: the file cannot be read as text"
        ):
            host.run("LycorisWeightBlocks", **inputs)
    own.unlink()
    patches = host.apply(plain, weighted).patches
    for key, wanted in (
        ("diffusion_model.input_blocks.1.0.in_layers.2.weight", -1.2),
        ("diffusion_model.input_blocks.0.0.weight", 0.4),
        ("diffusion_model.middle_block.0.in_layers.2.weight", 0.8),
        ("diffusion_model.output_blocks.3.0.in_layers.2.weight", 0.8),
        ("clip_l.transformer.text_model.encoder.layers.3.mlp.fc1.weight", 0.15),
    ):
        assert patches[key][0][1].weights[2] == pytest.approx((wanted,)), key
    assert not [key for key in patches if ".attn" in key or "self_attn" in key]


def test_the_blocks_of_a_model_are_listed_with_what_an_adapter_does_there(host: Host, plain: Patched) -> None:
    """Together the blocks have each layer once, and the whole of the change."""
    (weighted,) = host.run("LycorisWeightBlocks", host.stack(("lora", 0.5, 1.0)), "in.1 = 2")
    report, picture = host.run("LycorisBlockInfo", plain.model, plain.clip, weighted)
    rows = [line.split() for line in report.splitlines() if line.endswith("%")]
    assert sum(int(row[1]) for row in rows) == 190
    assert sum(float(row[-1].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.05 * len(rows))
    assert (
        picture.shape[-1] == 3
        and picture.ndim == 4
        and "clip_l.11" in report
        and "model_sampling" not in report
    )
    # Without adapters, the blocks alone.
    report, _ = host.run("LycorisBlockInfo", plain.model)
    assert "mid" in report and "clip_l" not in report


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the pack's archive has no pages")
def test_the_node_and_the_family_that_the_page_of_adding_adds_work(tmp_path: Path) -> None:
    home = added(tmp_path)
    chosen = "factor or (explained and LycorisScaleStack) or registers or checks_its_inputs"
    chosen += " or reel or defaults_of_every_family"
    files = [f"tests/host/test_{name}.py" for name in ("scale", "reel", "nodes", "training_nodes")]
    told = outcome(home, *files, "-k", chosen)
    assert "6 passed" in told
