"""What the page asks about adapter files: their list, what they say, their previews."""

from __future__ import annotations

import base64
import io
import json
import math
import ntpath
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from hosting import Host, ask, told
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.harness.assets import assets
from tests.harness.routes import FILE, script

pytestmark = pytest.mark.host


def preview(file: str) -> tuple[int, str, bytes]:
    return ask("/lycoris/adapters/preview", file=file)


def test_the_page_is_told_what_a_model_is(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader's file is found with or without its folder. No other file is found."""
    import folder_paths

    folder = host.base / "models" / "checkpoints"
    (folder / "packed.gguf").write_bytes(b"GGUF")
    made = {"model": ["auto", "base.safetensors"], "clip": ["checkpoints/base.safetensors"]}
    try:
        found, *others = (
            json.loads(ask("/lycoris/model", body)[2])
            for body in (
                json.dumps(made),
                json.dumps({"model": ["packed.gguf"], "clip": []}),
                json.dumps({"model": ["../checkpoints/base.safetensors", "/etc/passwd", ""], "clip": []}),
            )
        )
        with monkeypatch.context() as patched:
            # Paths as on Windows, where this one is on another drive.
            patched.setattr(folder_paths, "os", SimpleNamespace(path=ntpath))
            elsewhere = ask("/lycoris/model", json.dumps({"model": ["D:\\x.safetensors"], "clip": []}))
    finally:
        (folder / "packed.gguf").unlink()
    assert found["file"] == "checkpoints/base.safetensors"
    assert (found["family"], found["families"]) == ("SD 1.5", ["SD 1.5"])
    assert [other["file"] for other in others] == ["checkpoints/packed.gguf", ""]
    assert not any(other["families"] for other in others)
    assert elsewhere[0] == 200 and json.loads(elsewhere[2])["file"] == ""


@pytest.mark.parametrize("question", ["no JSON", "[]", "{}"])
def test_a_question_of_another_form_is_answered(host: Host, question: str) -> None:
    status, _, answer = ask("/lycoris/training", question)
    assert status == 200 and "cannot be read" in json.loads(answer)["error"]


WRONG = [None, True, -1, 1.5, "x", "\0", "a" * 5000, "\ud800", [1], ["x"], [[]], {"a": []}, 10**400]
QUESTIONS: dict[str, dict[str, Any]] = {
    "model": {"model": [], "clip": []},
    "training": {"node": "1", "page": "p", "model": [], "clip": [], "values": {}, "linked": [], "type": "t"},
    "config": {"text": "a: 1"},
    "rules": {"file": "lora.safetensors", "model": [], "clip": [], "rules": ""},
    "paint": {"file": "lora.safetensors", "model": [], "clip": [], "rules": "", "weights": {}},
    "adapters/facts": {"files": []},
}


@pytest.mark.parametrize("route", ["rows", "curve", *QUESTIONS])
def test_values_of_wrong_types_are_answered_in_words(host: Host, route: str) -> None:
    bodies = ["", "{", "9" * 5000, *map(json.dumps, WRONG)]
    question = QUESTIONS.get(route, {})
    bodies += [json.dumps({**question, name: value}) for name in question for value in WRONG]
    for body in bodies:
        status, kind, answer = ask(f"/lycoris/{route}", body)
        assert (status, kind) == (200, "application/json") and json.loads(answer) is not None, body
    for name in {"file", "rules", "values", "linked", "weights", "files"} & question.keys():
        answer = json.loads(ask(f"/lycoris/{route}", json.dumps({**question, name: 1}))[2])
        assert f"{name} that is not" in answer["error"]


def test_routes_answer_only_for_adapter_files(host: Host, lora_file: Callable[[str, Any], str]) -> None:
    """Lists, headers and previews are for GET alone. No answer says where the host's folders are."""
    assert ask("/lycoris/adapters", "")[0] == 405

    def about(file: str) -> dict[str, Any]:
        content = ask("/lycoris/adapters/about", file=file)[2].decode()
        assert str(host.base) not in content.replace("\\\\", "\\"), content
        return json.loads(content)

    told_of = {"modelspec.trigger_phrase": "<b>ink</b>", "ss_tag_frequency": "{", "modelspec.title": "t"}
    file = lora_file("told.safetensors", told(**told_of))
    names = ask("/lycoris/adapters")[2]
    listed = {name: (size, changed) for name, size, changed in json.loads(names)}
    known = (host.base / "models" / "loras" / file).stat()
    assert listed[file] == (known.st_size, known.st_mtime) and str(host.base).encode() not in names
    found = about("told")
    assert found["file"] == file and found["triggers"] == ["<b>ink</b>"] and found["kind"] == "lora"
    assert found["rank"] == "4" and "ss_tag_frequency cannot be read" in found["problems"][0]
    broken = lora_file("broken.safetensors", b"no adapter")
    assert about(broken)["error"].startswith("models/loras/broken.safetensors: ")
    assert str(host.base) not in str(ask("/lycoris/rows", f"<lora:{broken}:x>"))
    secret = host.base / "secret.safetensors"
    told()(secret)
    for outside in ("../../../secret.safetensors", str(secret), "/etc/passwd", "", "\0", "gone", "x" * 5000):
        told_back = ask("/lycoris/adapters/about", file=outside)[2].decode()
        assert set(json.loads(told_back)) == {"error"} and str(host.base) not in told_back, outside
        assert preview(outside)[::2] == (204, b"")
    secret.unlink()


def test_a_preview_is_a_picture_that_belongs_to_the_file(
    host: Host, lora_file: Callable[[str, Any], str]
) -> None:
    """A file that is no picture, or a link to one elsewhere, is no preview."""
    file = lora_file("told.safetensors", told())

    def picture(answer: tuple[int, str, bytes]) -> tuple[int, int]:
        status, kind, content = answer
        assert (status, kind) == (200, "image/jpeg")
        return Image.open(io.BytesIO(content)).size

    beside = host.base / "models" / "loras" / "told.preview.png"
    lora_file(beside.name, b"<svg onload='alert(1)'>")
    assert preview(file)[0] == 204
    Image.new("RGBA", (2000, 1000)).save(beside)
    assert picture(preview(file)) == (512, 256)
    beside.unlink()
    elsewhere = host.base / "elsewhere.png"
    Image.new("RGB", (8, 8)).save(elsewhere)
    beside.symlink_to(elsewhere)
    assert preview(file)[0] == 204
    within = io.BytesIO()
    Image.new("RGB", (30, 20)).save(within, "PNG")
    data = f"data:image/png;base64,{base64.b64encode(within.getvalue()).decode()}"
    lora_file("inner.safetensors", told(**{"modelspec.thumbnail": data}))
    assert picture(preview("inner")) == (30, 20)


def test_a_preview_of_a_stranger_takes_little(
    host: Host, lora_file: Callable[[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that would take much memory is not decoded, nor is a format that previews do not have."""
    plain = lora_file("plain.safetensors", told())
    beside = host.base / "models" / "loras" / "plain.png"
    lora_file(beside.name, b"")
    # A file of 4 kB and a header alone: both claim a picture of more than 100 MB.
    for kind, mode, size in (
        ("PNG", "1", (5000, 5000)),
        ("WEBP", "RGB", (2600, 2600)),
        ("BMP", "RGB", (9, 9)),
    ):
        huge = io.BytesIO()
        Image.new(mode, size).save(huge, kind)
        beside.write_bytes(huge.getvalue())
        data = f"data:image/png;base64,{base64.b64encode(huge.getvalue()).decode()}"
        within = lora_file(f"within{kind}.safetensors", told(**{"modelspec.thumbnail": data}))
        with monkeypatch.context() as patched:
            patched.setattr(Image.Image, "load", lambda self: pytest.fail("it is decoded"))
            for file in (plain, within):
                assert preview(file)[0] == 204, (kind, file)
    # Of a JPEG no more is decoded than is shown, so it may be larger.
    jpeg = io.BytesIO()
    Image.new("L", (6000, 6000)).save(jpeg, "JPEG")
    beside.write_bytes(jpeg.getvalue())
    data = f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
    within = lora_file("within.safetensors", told(**{"modelspec.thumbnail": data}))
    first = [preview(file) for file in (plain, within)]
    assert [status for status, *_ in first] == [200, 200]
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it is decoded once more"))
    assert [preview(file) for file in (plain, within)] == first


def clip(path: Path) -> None:
    """Write a clip of three frames."""
    codec = "libvpx" if path.suffix == ".webm" else "mpeg4"
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=3)
        stream.width = stream.height = 64
        for shade in (0, 120, 240):
            picture = np.full((64, 64, 3), shade, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        file.mux(stream.encode())


def test_a_clip_is_given_as_it_is_and_a_picture_comes_first(
    host: Host, lora_file: Callable[[str, Any], str]
) -> None:
    file = lora_file("told.safetensors", told())
    folder = host.base / "models" / "loras"
    for name in ("told.webm", "told.preview.mp4"):
        lora_file(name, clip)
        content = (folder / name).read_bytes()
        assert preview(file) == (200, f"video/{name[-4:].lstrip('.')}", content)
    Image.new("RGB", (80, 60)).save(folder / "told.png")
    assert preview(file)[1] == "image/jpeg"
    # A link to a clip elsewhere is not shown, nor is a clip without an adapter.
    secret = host.base / "secret.mp4"
    clip(secret)
    lora_file("inner.safetensors", told())
    (folder / "inner.mp4").symlink_to(secret)
    lora_file("plain.mp4", clip)
    for none in ("inner", "plain", "plain.mp4", "../../secret.mp4", "../../secret.safetensors"):
        assert preview(none)[::2] == (204, b""), none
    secret.unlink()


def facts(host: Host, *names: str) -> dict[str, Any]:
    content = ask("/lycoris/adapters/facts", json.dumps({"files": names}))[2].decode()
    assert str(host.base) not in content.replace("\\\\", "\\"), content
    return json.loads(content)


def test_facts_are_those_of_the_file_and_of_what_lies_beside_it(
    host: Host, lora_file: Callable[[str, Any], str]
) -> None:
    """Tables of Civitai Helper, A1111, ComfyUI-Lora-Manager, rgthree and Stability Matrix are read."""
    metadata = {"ss_tag_frequency": {"1_a": {"tree": 3}}, "modelspec.trigger_phrase": "ink wash"}
    file = lora_file("told.safetensors", told(**metadata))
    told_alone = facts(host, file)[file]
    assert (told_alone["kind"], told_alone["rank"], told_alone["family"]) == ("lora", "4", "SD 1.5")
    assert told_alone["families"] == ["SD 1.5"]
    assert (told_alone["triggers"], told_alone["tags"], told_alone["preview"]) == (["ink wash"], ["tree"], "")

    model = {"name": "Ink Wash", "type": "LORA", "tags": ["style", "ink"]}
    beside: dict[str, Any] = {
        "told.civitai.info": {
            "name": "v2",
            "baseModel": "SD 1.5",
            "trainedWords": ["w1, w2"],
            "model": model,
        },
        "told.json": {"sd version": "SD1", "activation text": "w3", "notes": "n", "preferred weight": 0.7},
        "told.metadata.json": {
            "file_name": "told",
            "model_name": "Ink, by hand",
            "base_model": "SD 1.5 Hyper",
            "favorite": True,
            "tags": ["drawing"],
            "civitai": {"trainedWords": ["w4"], "model": {"tags": ["brush"]}},
        },
        "told.safetensors.rgthree-info.json": {
            "trainedWords": [{"word": "w5", "count": 3}],
            "userTags": ["t"],
        },
        "told.cm-info.json": {"ModelName": "x", "TrainedWords": ["w6"], "Tags": ["six"], "BaseModel": "SD"},
    }
    for name, table in beside.items():
        lora_file(name, json.dumps(table).encode())
    Image.new("RGB", (8, 8)).save(host.base / "models" / "loras" / "told.preview.webp")
    found = facts(host, file)[file]
    assert found["triggers"] == ["ink wash", "w4", "w1", "w2", "w6", "w3", "w5"]
    assert set(found["tags"]) == {"tree", "drawing", "brush", "style", "ink", "six", "t"}
    assert (found["title"], found["base"], found["favourite"]) == ("Ink, by hand", "SD 1.5 Hyper", True)
    assert (found["preview"], found["problems"], found["stated"]) == ("picture", [], True)
    # The panel of a file shows the same, and the node outputs the trigger words.
    panel = json.loads(ask("/lycoris/adapters/about", file=file)[2])
    assert all(panel[key] == found[key] for key in ("triggers", "title", "preview", "stated", "family"))
    assert panel["tags"] == [["tree", 3]] and panel["tags_beside"] == found["tags"][1:]
    rows = json.dumps([{"file": file}])
    assert host.run("LycorisAdapterRows", rows)[1] == ", ".join(found["triggers"])
    node = host.nodes.NODE_CLASS_MAPPINGS["LycorisAdapterRows"]
    stamp = node.fingerprint_inputs(rows)
    lora_file("told.cm-info.json", b"{}")
    assert node.fingerprint_inputs(rows) != stamp
    # A file that holds no table is reported, and the others still count.
    lora_file("told.json", b"<html>")
    lora_file("told.metadata.json", b"[5]")
    found = facts(host, file)[file]
    assert found["title"] == "Ink Wash" and found["error"] == ""
    assert "told.metadata.json cannot be read: it is not a table" in found["problems"]
    assert len(found["problems"]) == 2
    # A training that failed leaves NaN in each tensor.
    whole = load_file(host.base / "models" / "loras" / file)
    nan = {key: torch.full_like(tensor, math.nan) for key, tensor in whole.items()}
    ruined = lora_file("ruined.safetensors", lambda path: save_file(nan, path))
    (problem,) = facts(host, ruined)[ruined]["problems"]
    assert problem.startswith("numbers in this file are NaN or infinite (")
    assert json.loads(ask("/lycoris/adapters/about", file=ruined)[2])["problems"] == [problem]
    # A file one byte over the limit is not read.
    lora_file("told.json", b"{}".ljust((4 << 20) + 1))
    assert "told.json cannot be read: it has more than 4194304 bytes" in facts(host, file)[file]["problems"]


def test_files_that_cannot_be_read_are_listed_with_the_reason(
    host: Host, lora_file: Callable[[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = host.base / "models" / "loras"
    whole = (assets() / "loras" / "lora.safetensors").read_bytes()
    lora_file("page.safetensors", b"<!DOCTYPE html><html><body>Sign in to download</body></html>")
    lora_file("cut.safetensors", whole[:-1000])
    lora_file("short.safetensors", whole[:900])
    lora_file("empty.safetensors", b"")
    lora_file("pickle.pt", b"no pickle")
    (folder / "link.safetensors").symlink_to(host.base / "gone.safetensors")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    names = {name for name, *_ in json.loads(ask("/lycoris/adapters")[2])}
    broken = sorted(
        names & {f"{one}.safetensors" for one in ("page", "cut", "short", "empty", "link", "loop")}
    )
    found = facts(host, *broken, "pickle.pt", "../../secret", "/etc/passwd", "gone")
    assert set(found) == {*broken, "pickle.pt"}
    assert all(name in one["error"] for name, one in found.items()), found
    # A file without read permission is read once the permission is there.
    late = lora_file("late.safetensors", told())
    real = os.stat
    with monkeypatch.context() as patched:

        def refused(path: Any, *args: Any, **options: Any) -> Any:
            if str(path).endswith(late):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **options)

        patched.setattr(os, "stat", refused)
        assert [size for name, size, _ in json.loads(ask("/lycoris/adapters")[2]) if name == late] == [0]
    opens = Path.open
    with monkeypatch.context() as patched:

        def denied(path: Path, *args: Any, **options: Any) -> Any:
            if path.name == late:
                raise PermissionError(13, "Permission denied", str(path))
            return opens(path, *args, **options)

        patched.setattr(Path, "open", denied)
        error = facts(host, late)[late]["error"]
        assert "models/loras/late.safetensors: the file cannot be read (found Permission denied)" in error
    assert facts(host, late)[late]["error"] == ""
    for asked in ("", "5", "{}", '"told"', "[" * 5000, "[[5]]"):
        assert "cannot be read" in json.loads(ask("/lycoris/adapters/facts", asked)[2])["error"]


def test_facts_are_kept_until_the_file_changes(
    host: Host, lora_file: Callable[[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = host.module("lycoris_nodes.files.facts")
    peeked: list[str] = []
    peek = module.peek_adapter
    monkeypatch.setattr(module, "peek_adapter", lambda path: (peeked.append(path), peek(path))[1])
    file = lora_file("told.safetensors", told())
    monkeypatch.setattr(module, "_KEPT", type(module._KEPT)())
    first = facts(host, file)
    assert facts(host, file) == first and len(peeked) == 1
    # As after a restart of the host.
    module._KEPT.write()
    monkeypatch.setattr(module, "_KEPT", type(module._KEPT)())
    assert facts(host, file) == first and len(peeked) == 1
    time.sleep(0.05)
    lora_file(file, told(**{"modelspec.trigger_phrase": "new"}))
    assert facts(host, file)[file]["triggers"] == ["new"] and len(peeked) == 2
    # A truncated cache is not used.
    kept = host.base / "user" / "__lycoris" / "files.json"
    kept.write_text(kept.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    monkeypatch.setattr(module, "_KEPT", type(module._KEPT)())
    assert facts(host, file)[file]["triggers"] == ["new"] and len(peeked) == 3


def test_reports_are_kept_by_their_prompt_up_to_a_number(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    module = host.module("lycoris_nodes.schema.kept")
    monkeypatch.setattr(module, "running_node", lambda: "2")
    monkeypatch.setattr(module, "MOST", 3)
    monkeypatch.setattr(module, "_kept", {})

    def ran(value: int, shown: dict[str, Any] | None) -> list[list[str]]:
        """The reports that are kept of node 2, after it has run behind a node with this value."""
        prompt = {"1": {"inputs": {"x": value}}, "2": {"inputs": {"from": ["1", 0]}}, "3": {"inputs": {}}}
        module.keep(SimpleNamespace(prompt=prompt, extra_pnginfo={"workflow": {}}), shown)
        assert module.kept(["1", "3"]) == []
        return [one.output["text"] for one in module.kept(["2"])]

    for value in range(5):
        found = ran(value, {"text": [str(value)], "images": []})
    assert found == [["4"], ["3"], ["2"]]
    # A repeated run becomes the latest, and one without a report removes its earlier report.
    assert ran(2, {"text": ["again"]}) == [["again"], ["4"], ["3"]]
    assert ran(4, None) == [["again"], ["3"]]


def test_the_pages_types_and_constants_are_those_of_the_routes(host: Host) -> None:
    names = ("routes", "stacks.rows", "files.loras")
    made = script(*(host.module(f"lycoris_nodes.{name}") for name in names))
    assert FILE.read_text(encoding="utf-8") == made, "write it: python -m tests.harness.routes --write"
