"""Rows of adapters as JSON, and the wires of other packs and of ComfyUI's own training nodes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, Patched
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.harness.assets import assets
from tests.harness.opens import opened

pytestmark = pytest.mark.host
LORA, LOKR = "lora.safetensors", "lokr.safetensors"


def text(*rows: dict[str, Any]) -> str:
    return json.dumps({"version": 1, "rows": rows})


def valid(host: Host, rows: Any) -> bool | str:
    return host.nodes.NODE_CLASS_MAPPINGS["LycorisAdapterRows"].validate_inputs(rows)


def told(**metadata: Any) -> Callable[[Path], None]:
    """Write an adapter with these metadata."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return lambda path: save_file(load_file(assets() / "loras" / LORA), path, texts)


def test_rows_are_a_chain_of_loaders(host: Host, lora_file: Callable[[str, Any], str]) -> None:
    """Rows that are off, one of them with a file that is missing, add nothing and are not read."""
    off = host.base / "models" / "loras" / lora_file("off.safetensors", told())
    read = opened(off)
    rows = text(
        {"file": LORA, "strength_model": 0.8, "strength_clip": -0.5, "rules": "mid = 0.5\nte = 0"},
        {"file": off.name, "on": False},
        {"file": "gone.safetensors", "on": False, "strength_model": 2, "rules": "this is no rule"},
        {"on": True, "file": LOKR, "rules": "  "},
        {"file": LOKR, "strength_model": -1},
    )
    assert valid(host, rows) is True
    first = host.stack((LORA, 0.3, 0.3))
    stack, words = host.run("LycorisAdapterRows", rows, first)
    weighted = host.run("LycorisWeightBlocks", host.stack((LORA, 0.8, -0.5)), "mid = 0.5\nte = 0")[0]

    def told_of(entries: Any) -> list[Any]:
        return [(e.adapter, e.name, e.strength, e.strength_of("te"), str(e.rules)) for e in entries]

    assert told_of(stack.entries[:2]) == told_of(first + weighted)
    assert [(e.adapter.name, e.strength, e.strength_of("te"), e.rules) for e in stack.entries[2:]] == [
        (LOKR, 1.0, 1.0, None),
        (LOKR, -1, -1, None),
    ]
    assert opened(off) == read and words == ""
    for nothing in ("", " \n", text()):
        assert host.run("LycorisAdapterRows", nothing)[0].entries == () and valid(host, nothing) is True
    many = text(*[{"file": LORA, "strength_model": number / 100} for number in range(500)])
    assert valid(host, many) is True and len(host.run("LycorisAdapterRows", many)[0]) == 500


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("{", "the rows are no JSON"),
        ("[" * 5000, "the rows are no JSON"),
        ('{"version": 1, "version": 1, "rows": []}', "the key 'version' is given twice"),
        ("[]", "the rows have another form"),
        ('{"version": 1, "rows": {}}', "the rows have another form"),
        ('{"version": 2, "rows": []}', "version: the rows are of a later version (found 2; expected 1)"),
        ('{"version": true, "rows": []}', "no version that is known"),
        ('{"version": 1, "rows": [], "more": 1}', "the rows: the field `more` is not known"),
        (text({"file": LORA}, {"file": LORA, "weight": 1}), "row 2: the field `weight` is not known"),
        (text({"on": True}), "row 1: a row names no file"),
        ('{"version": 1, "rows": ["x"]}', "row 1: a row is no table (found str"),
        (
            text({"file": LORA}, {"file": 5}),
            "row 2: the field `file` cannot be used (found 5; expected a text)",
        ),
        (text({"file": LORA, "on": 1}), "row 1: the field `on` cannot be used"),
        (text({"file": LORA, "strength_model": "1"}), "row 1: the field `strength_model` cannot be used"),
        (text({"file": LORA, "strength_model": float("nan")}), "(found NaN; expected a number, -100 to 100)"),
        (text({"file": LORA, "strength_clip": 10**400}), "row 1: the field `strength_clip` cannot be used"),
        (
            text({"file": LORA, "strength_model": -100.01}),
            "the field `strength_model` cannot be used (found -100.01; expected a number, -100 to 100)",
        ),
        (text({"file": LORA, "strength_clip": None}), "row 1: the field `strength_clip` cannot be used"),
        (text({"file": LORA}, {"file": LORA, "rules": "mid = 1\nx"}), "row 2: line 2"),
        (text({"file": LOKR, "on": False}, {"file": ""}), "row 2: no file is chosen"),
        (text({"file": "../../x\u202e\"'\U0001f388.safetensors"}), "row 1: the file is not there any more"),
        (text({"file": "a\0b"}), "row 1: the file is not there any more"),
        (text({"file": "adapter_model"}), "row 1: several files have this name"),
        (5, "the input `rows` cannot be used"),
    ],
    ids=range(24),
)
def test_rows_that_are_none_are_refused_when_they_are_queued(host: Host, rows: Any, words: str) -> None:
    assert words in str(valid(host, rows))
    with pytest.raises(host.ops.LycorisError) as caught:
        host.run("LycorisAdapterRows", rows)
    assert words in str(caught.value)


def test_rules_of_a_row_know_the_presets_of_the_users_file(host: Host, plain: Patched) -> None:
    own = host.base / "user" / "lycoris_presets.txt"
    row = {"file": LORA, "rules": "mine"}
    node = host.nodes.NODE_CLASS_MAPPINGS["LycorisAdapterRows"]
    assert "row 1: line 1" in str(valid(host, text(row)))
    before, plain_row = node.fingerprint_inputs(text(row)), node.fingerprint_inputs(text({"file": LORA}))
    own.write_text("mine: mid = 0.5\n", encoding="utf-8")
    try:
        assert valid(host, text(row)) is True
        (entry,) = host.run("LycorisAdapterRows", text(row))[0]
        (weighted,) = host.run("LycorisWeightBlocks", host.stack((LORA, 1.0, 1.0)), "mine")[0]
        assert str(entry.rules) == str(weighted.rules) and entry.rules is not None
        # A change of the presets runs the node again where its rules may name them.
        assert node.fingerprint_inputs(text(row)) != before
        assert node.fingerprint_inputs(text({"file": LORA})) == plain_row
    finally:
        own.unlink()


def test_trigger_words_are_those_of_the_rows_that_are_on(
    host: Host, lora_file: Callable[[str, Any], str]
) -> None:
    stated = lora_file("stated.safetensors", told(**{"modelspec.trigger_phrase": "ink wash, by hand"}))
    counts = {"10_a": {"alice": 20, "hat": 7, "blue eyes": 20}, "1_b": {"bob": 3}}
    counted = lora_file(
        "counted.safetensors", told(ss_tag_frequency=counts, ss_dataset_dirs={"10_a": {"img_count": 20}})
    )
    rows = [{"file": stated}, {"file": LORA}, {"file": counted}, {"file": stated}]
    words = "ink wash, by hand, alice, blue eyes, bob"
    assert host.run("LycorisAdapterRows", text(*rows))[1] == words
    rows[2]["on"] = False
    assert host.run("LycorisAdapterRows", text(*rows))[1] == "ink wash, by hand"


def test_a_lora_stack_is_read_in_every_form_and_written_as_packs_read_it(host: Host, plain: Patched) -> None:
    nested = "peft_unet_lora/adapter_model.safetensors"
    full = str(host.base / "models" / "loras" / LOKR)
    rows = [
        (LORA, 0.5, 0.25),
        None,
        ["None", 1.0, 1.0],
        (None, 1, 1),
        (nested.replace("/", "\\"), 1, 0.0, "conflict_mode"),
        [full, -0.5, 1.0],
        {"name": "loha", "strength": 0.3, "lora": {}, "metadata": {}},
        {"_merge_formula": "a + b"},
        (LORA, 2.0, 2.0),
    ]
    (stack,) = host.run("LycorisFromLoraStack", 1.0, 1.0, lora_stack=[row for row in rows if row is not None])
    written, _, report = host.run("LycorisToLoraStack", stack)
    expected = [
        (LORA, 0.5, 0.25),
        (nested.replace("/", os.sep), 1.0, 0.0),
        (LOKR, -0.5, 1.0),
        ("loha.safetensors", 0.3, 0.3),
        (LORA, 2.0, 2.0),
    ]
    assert written == expected and all(type(row) is tuple for row in written)
    assert "lora_stack: 5 rows" in report and "lora_model: cannot be made" in report
    # The same files again, and a stack of none in each of its forms.
    assert host.run("LycorisFromLoraStack", 1.0, 1.0, lora_stack=written)[0] == stack
    for nothing in (None, [], ()):
        assert host.run("LycorisFromLoraStack", 1.0, 1.0, lora_stack=nothing)[0].entries == ()
    # Directly into an input for stacks, also one that grows.
    few = [(LORA, 0.5, 0.25), (LOKR, 1.0, 1.0)]
    (joined,) = host.run("LycorisCombineStacks", stacks={"stack0": few, "stack1": None})
    assert [entry.strength for entry in joined] == [0.5, 1.0]
    assert host.apply(plain, few).report == host.apply(plain, joined).report
    for wrong, words in (
        ([(LORA, 0.5)], "row 1 of the LORA_STACK: this is no row of a LORA_STACK"),
        ([(LORA, 1.0, 1.0), (LORA, "x", 1.0)], "row 2 of the LORA_STACK: a strength is no finite number"),
        ([("gone", 1.0, 1.0)], "gone: row 1 of the LORA_STACK: the file is not there any more"),
        ("lora", "the input `stack` cannot be used"),
    ):
        with pytest.raises(host.ops.LycorisError) as caught:
            host.apply(plain, wrong)
        assert words in str(caught.value)


def test_what_other_wires_cannot_hold_stops_only_the_nodes_behind_them(host: Host) -> None:
    weighted = host.run("LycorisWeightBlocks", host.stack((LORA, 1.0, 1.0)), "mid = 0.5")[0]
    outputs = host.run("LycorisToLoraStack", weighted)[:2]
    for output, words in zip(outputs, ("block rules", "Connect `model`"), strict=True):
        assert type(output).__name__ == "ExecutionBlocker" and words in output.message
    (memory,) = host.run("LycorisFromLoraStack", 1.0, 1.0, lora_model=load_file(assets() / "loras" / LORA))
    blocked, held, _ = host.run("LycorisToLoraStack", memory)
    assert "nothing but files in a loras folder" in blocked.message and len(held) == 573
    rows, none, _ = host.run("LycorisToLoraStack")
    assert rows == [] and "a stack of 0: none" in none.message


def test_a_lora_model_goes_both_ways(
    host: Host, plain: Patched, distance: Callable[[torch.Tensor, torch.Tensor], float]
) -> None:
    """ComfyUI's own node loads what we hand on, and we load it again, with the same picture."""
    stack = host.stack((LOKR, 1.0, 1.0))
    _, held, report = host.run("LycorisToLoraStack", stack)
    assert f"lora_model: {len(held)} tensors" in report
    (again,) = host.run("LycorisFromLoraStack", 1.0, 0.0, lora_model=held)
    reference = host.latent(host.apply(plain, host.stack((LOKR, 1.0, 0.0))))
    assert torch.equal(host.latent(host.apply(plain, again)), reference)
    (patched,) = host.run("LoraModelLoader", plain.model, held, 1.0)
    assert distance(host.latent(Patched(patched, plain.clip)), reference) < 1e-3
    # SaveLoRA writes it by safetensors, which refuses tensors that share memory.
    save_file(held, host.base / "output" / "held.safetensors")


def test_routes_answer_only_for_adapter_files(host: Host, lora_file: Callable[[str, Any], str]) -> None:
    """Lists, headers and previews, by GET alone; a preview that is no picture is none."""
    from aiohttp.test_utils import make_mocked_request
    from server import PromptServer

    found = [
        route for route in PromptServer.instance.routes if "/lycoris/adapters" in getattr(route, "path", "")
    ]
    assert {route.method for route in found} == {"GET"} and len(found) == 3

    def ask(path: str, file: str = "") -> tuple[int, str, bytes]:
        (route,) = [route for route in found if route.path == f"/lycoris/adapters{path}"]
        request = make_mocked_request("GET", "/")
        request = request.clone(rel_url=request.rel_url.with_query(file=file))
        answer = asyncio.new_event_loop().run_until_complete(route.handler(request))
        return answer.status, answer.content_type, answer.body

    told_of = {"modelspec.trigger_phrase": "<b>ink</b>", "ss_tag_frequency": "{", "modelspec.title": "t"}
    file = lora_file("told.safetensors", told(**told_of))
    assert file in json.loads(ask("")[2])
    about = json.loads(ask("/about", "told")[2])
    assert about["file"] == file and about["triggers"] == ["<b>ink</b>"] and about["kind"] == "lora"
    assert about["rank"] == "4" and "ss_tag_frequency cannot be read" in about["problems"][0]
    secret = host.base / "secret.safetensors"
    told()(secret)
    for outside in ("../../../secret.safetensors", str(secret), "/etc/passwd", "", "\0", "gone", "x" * 5000):
        assert set(json.loads(ask("/about", outside)[2])) == {"error"}, outside
        assert ask("/preview", outside)[::2] == (204, b"")
    secret.unlink()

    def picture(answer: tuple[int, str, bytes]) -> tuple[int, int]:
        status, kind, content = answer
        assert (status, kind) == (200, "image/jpeg")
        return Image.open(io.BytesIO(content)).size

    beside = host.base / "models" / "loras" / "told.preview.png"
    lora_file(beside.name, b"<svg onload='alert(1)'>")
    assert ask("/preview", file)[0] == 204
    Image.new("RGBA", (2000, 1000)).save(beside)
    assert picture(ask("/preview", file)) == (512, 256)
    beside.unlink()
    elsewhere = host.base / "elsewhere.png"
    Image.new("RGB", (8, 8)).save(elsewhere)
    beside.symlink_to(elsewhere)
    assert ask("/preview", file)[0] == 204
    within = io.BytesIO()
    Image.new("RGB", (30, 20)).save(within, "PNG")
    data = f"data:image/png;base64,{base64.b64encode(within.getvalue()).decode()}"
    lora_file("inner.safetensors", told(**{"modelspec.thumbnail": data}))
    assert picture(ask("/preview", "inner")) == (30, 20)
