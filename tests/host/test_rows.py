"""Rows of adapters as JSON, and the wires of other packs and of ComfyUI's own training nodes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import LOKR, LORA, Host, Patched, ask, text, told
from safetensors.torch import load_file, save_file

from tests.harness.assets import assets
from tests.harness.opens import opened
from tests.harness.typed import TYPED

pytestmark = pytest.mark.host


def valid(host: Host, rows: Any) -> bool | str:
    return host.nodes.NODE_CLASS_MAPPINGS["LycorisAdapterRows"].validate_inputs(rows)


def rows_of(body: str) -> dict[str, Any]:
    """What the page is told of the rows of a text."""
    status, kind, content = ask("/lycoris/rows", body)
    assert (status, kind) == (200, "application/json")
    return json.loads(content)


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


def test_rows_in_short_and_of_any_number(host: Host) -> None:
    for nothing in ("", " \n", text()):
        assert host.run("LycorisAdapterRows", nothing)[0].entries == () and valid(host, nothing) is True
    # A table needs no more than the rows, as the help says, and a row no more than its file.
    for short in ({"rows": [{"file": LORA}]}, [{"file": LORA}]):
        assert valid(host, json.dumps(short)) is True
        assert [entry.name for entry in host.run("LycorisAdapterRows", json.dumps(short))[0]] == [LORA]
    many = text(*[{"file": LORA, "strength_model": number / 100} for number in range(500)])
    assert valid(host, many) is True and len(host.run("LycorisAdapterRows", many)[0]) == 500


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("{", "the rows are neither JSON"),
        ("[" * 5000, "the rows are neither JSON"),
        ('{"version": 1, "version": 1, "rows": []}', "the key 'version' is given twice"),
        ("[]", "the rows have another form"),
        ('{"version": 2, "rows": []}', "version: the rows are of a later version (found 2; expected 1)"),
        ('{"version": 1, "rows": [], "more": 1}', "the rows: the field `more` is unknown"),
        (text({"file": LORA}, {"file": LORA, "weight": 1}), "row 2: the field `weight` is unknown"),
        (text({"on": True}), "row 1: a row names no file"),
        ('{"version": 1, "rows": ["x"]}', "row 1: a row is not a table (found str"),
        (
            text({"file": LORA}, {"file": 5}),
            "row 2: the field `file` cannot be used (found 5; expected a text)",
        ),
        (text({"file": LORA, "on": 1}), "row 1: the field `on` cannot be used"),
        (
            text({"file": LORA}, {"file": LORA, "strength_model": "1/3"}),
            'row 2: the field `strength_model` cannot be used (found "1/3"; expected a number, -100 to 100)',
        ),
        (
            f"<lora:{LOKR}:1> <lora:{LORA}:abc>",
            'row 2: the field `strength_model` cannot be used (found "abc"',
        ),
        (f"<lora:{LORA}:1:>", 'row 1: the field `strength_clip` cannot be used (found ""'),
        (f"<lyco:{LORA}:1:1:8>", "row 1: a row cannot hold `dyn` of this tag (found <lyco:"),
        (f"<lora:{LORA}:1:step=5>", "row 1: a row cannot hold `step` of this tag"),
        (f"<lora:{LORA}:1:lbw=INS;A=1>", "row 1: a row cannot hold `A=1` of this tag"),
        (f"<lora:{LORA}:1", "row 1: this tag has no end"),
        (
            f"[('{LORA}', 1.0, np.float64(0.5))]",
            'row 1: the field `strength_clip` cannot be used (found "np.fl',
        ),
        ("a cat", "the rows are neither JSON nor tags"),
        (text({"file": LORA, "strength_model": float("nan")}), "(found NaN; expected a number, -100 to 100)"),
        (
            text({"file": LORA, "strength_model": -100.01}),
            "the field `strength_model` cannot be used (found -100.01; expected a number, -100 to 100)",
        ),
        (text({"file": LORA, "strength_clip": None}), "row 1: the field `strength_clip` cannot be used"),
        (text({"file": LORA}, {"file": LORA, "rules": "mid = 1\nx"}), "row 2: line 2"),
        (text({"file": LOKR, "on": False}, {"file": ""}), "row 2: no file is chosen"),
        (text({"file": "../../x\u202e\"'\U0001f388.safetensors"}), "row 1: the file is not there"),
        (text({"file": "adapter_model"}), "row 1: several files have this name"),
        (5, "the input `rows` cannot be used"),
    ],
    ids=range(28),
)
def test_rows_that_are_none_are_refused_when_they_are_queued(host: Host, rows: Any, words: str) -> None:
    with pytest.raises(host.ops.LycorisError) as caught:
        host.run("LycorisAdapterRows", rows)
    assert words in str(caught.value)
    # A page is told the same with the verdict first.
    said = str(valid(host, rows))
    assert all(part in said for part in (caught.value.problem, caught.value.got or ""))


def test_every_row_says_what_is_wrong_with_it(host: Host) -> None:
    rows = [
        {"file": LORA, "strength_model": "1/3"},
        {"file": LOKR},
        {"file": "gone", "on": False},
        {"file": LOKR, "rules": "x"},
        {"file": "gone"},
    ]
    lines = str(valid(host, json.dumps({"rows": rows}))).splitlines()
    assert [line[:6] for line in lines if line.startswith("row ")] == ["row 1:", "row 4:", "row 5:"]


def test_a_page_is_told_which_rows_stop_a_run(host: Host, lora_file: Callable[[str, Any], str]) -> None:
    """Also files that only a run opens; in the language of the page, without the name of the row."""
    broken = lora_file("broken.safetensors", b"no adapter")
    wrong = {"file": LORA, "strength_model": "1/3"}
    rows = [{"file": LORA}, wrong, {"file": broken}, {"file": broken, "on": False}]
    refused = json.loads(ask("/lycoris/rows/refused", text(*rows))[2])
    assert [row["index"] for row in refused] == [1, 2]
    assert refused[0]["reason"].startswith("the field `strength_model` cannot be used.\nExpected: ")
    assert refused[0]["details"] == 'found: "1/3"'
    assert "broken" in refused[1]["reason"] and str(host.base) not in str(refused)
    (first, _) = json.loads(ask("/lycoris/rows/refused", text(*rows), language="zh")[2])
    assert "不能" in first["reason"] or "无法" in first["reason"]
    # A text that has no rows is no row's fault.
    assert json.loads(ask("/lycoris/rows/refused", "{")[2])["error"]
    assert json.loads(ask("/lycoris/rows/refused", "")[2]) == []


def test_a_name_that_two_files_have_is_none(host: Host, lora_file: Callable[[str, Any], str]) -> None:
    for ending in ("safetensors", "pt"):
        lora_file(f"twice.{ending}", b"")
    assert "several files have this name" in str(valid(host, text({"file": "twice"})))


def test_strengths_are_read_as_people_type_them(host: Host) -> None:
    read = {typed: host.module("lycoris_nodes.stacks.typed").read_number(typed) for typed in TYPED}
    assert read == TYPED
    (entry,) = host.run("LycorisAdapterRows", text({"file": LORA, "strength_model": "0,5"}))[0]
    assert entry.strength == 0.5


def test_tags_and_rows_of_other_packs_are_rows(host: Host, lora_file: Callable[[str, Any], str]) -> None:
    """As the value of the input, and as the page asks for them: no number is taken for another."""
    colons = lora_file("a:b.safetensors", told())
    tags = {
        "<lora:lora>": (LORA, 1, 1),
        "<lora:lora:0,8>": (LORA, 0.8, 0.8),
        "<lora:lora:+0.5>": (LORA, 0.5, 0.5),
        "< LoRA : lora : .5 : \u22120.7 >": (LORA, 0.5, -0.7),
        "<lora:lora:0.5:te=0.3>": (LORA, 0.5, 0.3),
        "<lora:lora:unet=0.7>": (LORA, 0.7, 1),
        "<lora:lora:te=0.5>": (LORA, 0.5, 0.5),
        "<lyco:lora:te=0.5:unet=0.7>": (LORA, 0.7, 0.5),
        "<lyco:lora:0.5:0.7>": (LORA, 0.7, 0.5),
        "<lyco:lora:0.5>": (LORA, 0.5, 0.5),
        "<lora:C:\\dir\\x:0.5>": ("C:\\dir\\x", 0.5, 0.5),
        "<lora:C:/x>": ("C:/x", 1, 1),
        "<lora:a:b:0.5>": (colons, 0.5, 0.5),
        "<lora:a:b>": (colons, 1, 1),
        "<lora:None:1>": None,
    }
    prompt = "a cat " + ", ".join(tags)
    rows = rows_of(prompt)["rows"]
    found = [
        (row["file"], row["strength_model"], row.get("strength_clip", row["strength_model"])) for row in rows
    ]
    assert found == [row for row in tags.values() if row]
    run = " ".join(tag for tag, row in tags.items() if row and row[0] == LORA)
    assert valid(host, run) is True and valid(host, json.dumps(run)) is True
    stack = host.run("LycorisAdapterRows", run)[0]
    assert [(entry.strength, entry.strength_of("te")) for entry in stack] == [row[1:] for row in found[:-4]]


def test_rows_of_other_packs_are_rows() -> None:
    own = rows_of('[{"file": "a", "strength_model": 0.5}, {"file": "b", "on": false, "rules": "mid = 0"}]')
    assert [row["file"] for row in own["rows"]] == ["a", "b"]
    assert "2 rows, 1 of them" in rows_of('("a", 0.5, 1), ("b", 0.5)')["error"]
    (blocks,) = rows_of("<lyco:loha:1:0.2:lbw=INS>")["rows"]
    assert blocks["rules"] == "INS" and blocks["file"] == "loha.safetensors"

    rgthree = {"on": False, "lora": "lora", "strength": 0.4, "strengthTwo": None}
    manager = {"name": "gone", "strength": "0.80", "clipStrength": 0.5, "active": True}
    theirs = [{}, rgthree, "", {"lora": "None"}, {"deep": [manager]}, ["lokr", 0.5, 1], [None, 1, 1]]
    assert rows_of(json.dumps({"widgets_values": theirs}))["rows"] == [
        {"on": False, "file": LORA, "strength_model": 0.4},
        {"on": True, "file": "gone", "strength_model": 0.8, "strength_clip": 0.5},
        {"on": True, "file": LOKR, "strength_model": 0.5, "strength_clip": 1},
    ]
    written = "[('it\\'s\\\\x', 0.5, 1.0), (None, 1, 1)]"
    assert rows_of(written)["rows"][0]["file"] == "it's\\x"
    assert "is no number" not in str(rows_of(json.dumps(["a", "b", "c"])))


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
        ([(LORA, 0.5)], "row 1 of the LORA_STACK: this is not a row of a LORA_STACK"),
        ([(LORA, 1.0, 1.0), (LORA, "x", 1.0)], "row 2 of the LORA_STACK: a strength is not a finite number"),
        ([("gone", 1.0, 1.0)], "gone: row 1 of the LORA_STACK: the file is not there"),
        ("lora", "the input `stack` cannot be used"),
    ):
        with pytest.raises(host.ops.LycorisError) as caught:
            host.apply(plain, wrong)
        assert words in str(caught.value)


def test_what_other_wires_cannot_hold_stops_only_the_nodes_behind_them(host: Host) -> None:
    weighted = host.run("LycorisWeightBlocks", host.stack((LORA, 1.0, 1.0)), "mid = 0.5")[0]
    outputs = host.run("LycorisToLoraStack", weighted)[:2]
    for output, words in zip(outputs, ("block rules", "Give the model"), strict=True):
        assert type(output).__name__ == "ExecutionBlocker" and words in output.message
    (memory,) = host.run("LycorisFromLoraStack", 1.0, 1.0, lora_model=load_file(assets() / "loras" / LORA))
    made = host.nodes.NODE_CLASS_MAPPINGS["LycorisToLoraStack"].execute(memory)
    blocked, held, _ = made.args
    assert made.ui["lycoris"][0]["state"] == "partly"
    assert "nothing but files in a loras folder" in blocked.message and len(held) == 570
    for nothing, words in ((), "no stack arrived"), ((host.ops.Stack([]),), "a stack of 0: none"):
        rows, none, _ = host.run("LycorisToLoraStack", *nothing)
        assert rows == [] and words in none.message


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


def test_no_error_and_no_report_says_where_the_hosts_folders_are(
    host: Host, lora_file: Callable[[str, Any], str], tmp_path: Path
) -> None:
    """Of a file in a folder elsewhere, the kind of the folder is said."""
    import folder_paths

    broken = lora_file("broken.safetensors", b"no adapter")
    elsewhere = tmp_path / "my loras"
    elsewhere.mkdir()
    (elsewhere / "far.safetensors").write_bytes(b"no adapter")
    # With a slash at the end, as some write it.
    folder_paths.add_model_folder_path("loras", f"{elsewhere}/")
    said = [str(valid(host, text({"file": "gone"})))]
    try:
        for node, inputs in (
            ("LycorisAdapterRows", [text({"file": broken})]),
            ("LycorisAdapterRows", [text({"file": "far.safetensors"})]),
            ("LycorisAdapterRows", [text({"file": "gone"})]),
            ("LycorisLoadAdapter", [broken, 1.0, 1.0]),
            ("LycorisSaveAdapter", [host.stack((LORA, 1.0, 1.0)), "../../leaves"]),
        ):
            with pytest.raises(host.ops.LycorisError) as caught:
                host.run(node, *inputs)
            said.append(str(caught.value))
    finally:
        folder_paths.folder_names_and_paths["loras"][0].remove(f"{elsewhere}/")
    told()(host.base / "output" / "in no list.safetensors")
    adapter = host.ops.load_adapter(host.base / "output" / "in no list.safetensors")
    held = host.ops.Stack([host.ops.Entry(adapter)])
    said += [host.run("LycorisToLoraStack", held)[0].message, host.run("LycorisToLoraStack", held)[2]]
    assert [words for words in said if str(host.base) in words or str(tmp_path) in words] == []
    assert said[1].startswith("models/loras/broken.safetensors: ") and said[2].startswith(
        "loras/far.safetensors: "
    )
    assert "output/in no list.safetensors" in said[-1]


def test_factors_of_picture_and_sound_are_block_rules(host: Host) -> None:
    rows = text({"file": LORA, "rules": "mid = 0.5", "audio": "0,5", "video": 0}, {"file": LORA, "audio": 1})
    assert valid(host, rows) is True
    first, second = host.run("LycorisAdapterRows", rows)[0].entries
    assert str(first.rules) == "mid = 0.5; video = *0; audio = *0.5" and second.rules is None
    told_back = rows_of(rows)["rows"]
    assert [{"video", "audio"} & row.keys() for row in told_back] == [{"video", "audio"}, set()]
    assert "audio" in str(valid(host, text({"file": LORA, "audio": "x"})))
