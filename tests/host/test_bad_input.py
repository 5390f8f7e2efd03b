"""Bad input over the host's HTTP interface: an error on the node, nothing lost, and the host stays up."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import os
import pickle
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.harness.assets import assets, install
from tests.harness.base import UNET
from tests.harness.facts import ROOT, facts
from tests.harness.hostile import HEADERS
from tests.harness.launch import PromptRejected, Server, base_directory
from tests.harness.payloads import marking
from tests.harness.prompts import Node, Prompt, node

pytestmark = pytest.mark.host
LORA = "lora.safetensors"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    base = install(base_directory(ROOT / ".cache" / facts().host / "bad-input", ROOT))
    with Server(facts().comfyui, base) as running:
        yield running


@pytest.fixture(autouse=True)
def stays_up(server: Server) -> Iterator[None]:
    """After every test the host must answer, and no half-written file may be left."""
    yield
    assert server.running() and "LycorisApplyStack" in server.get("/object_info/LycorisApplyStack")
    assert not list((server.base / "output").rglob("*.part"))


@pytest.fixture
def loras(server: Server) -> Iterator[Path]:
    """The host's loras folder. Files that a test adds to it are removed."""
    folder = server.base / "models" / "loras"
    before = set(folder.iterdir())
    yield folder
    for path in set(folder.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


SECONDS, BYTES = 2, 100_000_000
"""What a request about a stranger's text or file may take: CPU time and time in all, and memory."""


def memory(server: Server, what: str) -> int:
    """A number of bytes in the state of the server's process: `VmRSS` now, `VmHWM` at most."""
    state = Path(f"/proc/{server.pid}/status").read_text()
    return int(next(line for line in state.splitlines() if line.startswith(f"{what}:")).split()[1]) << 10


def processor(server: Server) -> float:
    """The seconds of the processor that the server's process has taken."""
    times = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def queued(*processes: int) -> float:
    """The seconds in which threads of these processes could run and no processor was free."""
    tasks = [task for one in processes for task in Path(f"/proc/{one}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[1]) for task in tasks) / 1e9


def picture(kind: str, side: int) -> bytes:
    data = io.BytesIO()
    Image.new("1" if kind == "PNG" else "RGB", (side, side)).save(data, kind)
    return data.getvalue()


LAUGHS = "a: &a [x]\n" + "".join(
    f"{inner}: &{inner} [{', '.join([f'*{outer}'] * 9)}]\n"
    for outer, inner in itertools.pairwise("abcdefghi")
)
QUESTION = {"file": LORA, "model": ["base.safetensors"], "clip": ["base.safetensors"]}
RULES = [
    r"/(\w+\.?)+!/ = 1",
    "\n".join(rf"/(.*)(.*)(.*)(.*)(.*)(.*)\1\2\3[!?]{n}/ = 1" for n in range(99)),
    "[" * 60_000 + " = 0.5",
    "\n".join(f"gone.{n} = 0" for n in range(4_000)),
]
POSTS: dict[str, tuple[str, str]] = {
    **{
        f"rules {n}": ("/lycoris/rules", json.dumps({**QUESTION, "rules": text}))
        for n, text in enumerate(RULES)
    },
    "tags": ("/lycoris/rows", "<lora:gone:0.5>, " * 200_000),
    "few tags": ("/lycoris/rows", "<lora:gone:0.5>, " * 1_000),
    "YAML": ("/lycoris/config", json.dumps({"text": LAUGHS})),
    "a config": ("/lycoris/config", json.dumps({"text": ".py " * 16_000})),
    "types": ("/lycoris/training", json.dumps({**QUESTION, "node": 1, "page": 1, "linked": 1, "values": 1})),
    "20 MB": ("/lycoris/curve", "0" * 20_000_000),
    "a header": ("/lycoris/adapters/facts", json.dumps({"files": ["header.safetensors"]})),
}
PREVIEWS = {"within.safetensors": ("PNG", 13_300), "beside.safetensors": ("WEBP", 2_600)}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of another process is in /proc")
@pytest.mark.parametrize("name", [*POSTS, *PREVIEWS])
def test_a_stranger_takes_little_of_the_server(server: Server, loras: Path, name: str) -> None:
    """Each is answered within two seconds and 100 MB, without an HTTP error.

    What it waits for a processor is the other processes' load, and does not count.
    """
    if name == "a header":
        made = HEADERS["1,600,000 keys"][0]()
        (loras / "header.safetensors").write_bytes(made)
    if name in PREVIEWS:
        data = picture(*PREVIEWS[name])
        inner = name.startswith("within")
        text = {"modelspec.thumbnail": f"data:image/png;base64,{base64.b64encode(data).decode()}"}
        save_file(load_file(assets() / "loras" / LORA), loras / name, text if inner else None)
        if not inner:
            (loras / name).with_suffix(".webp").write_bytes(data)
    path, body = POSTS.get(name, (f"/lycoris/adapters/preview?file={name}", None))
    request = urllib.request.Request(f"{server.url}{path}", body.encode() if body else None)
    server.get("/lycoris/adapters")
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")
    before, began = memory(server, "VmRSS"), processor(server)
    start, others = time.monotonic(), queued(server.pid, os.getpid())
    with urllib.request.urlopen(request, timeout=20) as answer:
        answered = answer.read()
    whole = time.monotonic() - start - (queued(server.pid, os.getpid()) - others)
    took = max(processor(server) - began, whole)
    assert answer.status == (204 if name in PREVIEWS else 200)
    assert took < SECONDS and memory(server, "VmHWM") - before < BYTES, (answered[:200], took)


def load_node(file: str, strength: float = 1.0) -> Node:
    return node("LycorisLoadAdapter", file=file, strength_model=strength, strength_clip=strength)


def apply_prompt(file: str, rules: str = "", **inputs: Any) -> Prompt:
    """A graph that loads an adapter, weights its blocks, applies it and shows the report."""
    links = {"model": ["base", 0], "clip": ["base", 1], "stack": ["rules", 0]}
    settings = {"mode": "merge", "strict": False, **inputs}
    return {
        "base": node("CheckpointLoaderSimple", ckpt_name="base.safetensors"),
        "load": load_node(file),
        "rules": node("LycorisWeightBlocks", stack=["load", 0], rules=rules),
        "apply": node("LycorisApplyStack", **links, **settings),
        "show": node("PreviewAny", source=["apply", 2]),
    }


def save_prompt(
    file: str = LORA,
    prefix: str = "checkpoints/merged",
    strength: float = 1.0,
    base: str = "base.safetensors",
) -> Prompt:
    """A graph that merges an adapter into a checkpoint."""
    settings = {"filename_prefix": prefix, "dtype": "as in the file", "strict": False}
    save = node("LycorisSaveCheckpoint", base=f"checkpoints/{base}", stack=["load", 0], **settings)
    return {"load": load_node(file, strength), "save": save}


def refused(server: Server, prompt: Prompt) -> str:
    """The message with which the graph refuses this prompt, before or while it runs.

    While it runs, the message must be of an error of the library, with a sentence first.
    """
    try:
        run = server.queue(prompt)
    except PromptRejected as error:
        assert "Exception when validating" not in str(error), str(error)
        return str(error)
    assert run.error is not None, "the prompt ran without an error"
    message, kind = run.error.exception_message, run.error.exception_type
    assert kind.endswith(".NodeError"), f"{kind}: {message}"
    assert message.splitlines()[0].endswith(".") and "Traceback" not in message, message
    return message


def edited(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Write the LoRA of the tests with its tensors changed."""
    return lambda path: save_file(change(load_file(assets() / "loras" / LORA)), path)


def cut(path: Path) -> None:
    """Write the first part of a LoRA's file."""
    path.write_bytes((assets() / "loras" / LORA).read_bytes()[:-1000])


def web_page(path: Path) -> None:
    """Write what a site answers who is not logged in."""
    path.write_text("\n<!DOCTYPE html><html><head><title>Log in</title></head></html>" + " " * 400)


def bad_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(marking(path.with_name("ran"))))


def wrong_shape(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "lora_unet_conv_in.lora_down.weight": torch.zeros(4, 9, 3, 3)}


def poisoned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put a value that is not finite into one factor."""
    tensors["lora_unet_conv_in.lora_up.weight"][3, 1] = math.nan
    return tensors


def flux(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors for layers that only Flux has."""
    return {
        f"lora_unet_double_blocks_{n}_img_attn_qkv.{side}.weight": torch.zeros(8, 8)
        for n in range(19)
        for side in ("lora_up", "lora_down")
    }


def sdxl(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names that SD1.5 has too, with the widths of another text encoder."""
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    return {f"{layer}.lora_up.weight": torch.zeros(640, 4), f"{layer}.lora_down.weight": torch.zeros(4, 2048)}


FILES: dict[str, tuple[str, Callable[[Path], Any], tuple[str, ...]]] = {
    "truncated": ("cut.safetensors", cut, ("found", "expected", "bytes", "download")),
    "web-page": ("page.safetensors", web_page, ("this is a web page, not a model", "login may be needed")),
    "pickle": ("evil.pt", bad_pickle, ("evil.pt", "not a pickle of plain tensors", ".safetensors")),
    "other-architecture": (
        "flux.safetensors",
        edited(flux),
        (
            "double_blocks",
            "flux is made for Flux 1 or Chroma; this model is SD 1.5.\nChoose another file or ",
        ),
    ),
    "same-names-other-widths": (
        "sdxl.safetensors",
        edited(sdxl),
        ("attn2_to_k", "2048", "768", "sdxl is made for SDXL; this model is SD 1.5.\nChoose another file"),
    ),
    "wrong-shape": (
        "shape.safetensors",
        edited(wrong_shape),
        ("lora_unet_conv_in", "[320, 9, 3, 3]", "[320, 4, 3, 3]", "= 0"),
    ),
    "nan": ("nan.safetensors", edited(poisoned), ("conv_in.lora_up.weight", "NaN", "finite")),
}
"""Bad files, by where their error comes from: the name, what writes the file, and words of the error.

All that a header can have is tried with `tests/harness/hostile.py`."""


def test_a_file_of_a_row_that_is_cut_off_names_its_row(server: Server, loras: Path) -> None:
    cut(loras / "cut.safetensors")
    rows = json.dumps({"rows": [{"file": LORA}, {"file": "cut.safetensors"}]})
    prompt = apply_prompt(LORA)
    prompt["load"] = node("LycorisAdapterRows", rows=rows)
    assert refused(server, prompt).startswith("row 2: cut.safetensors: it is cut off.\n")


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_an_error_on_the_node(server: Server, loras: Path, case: str) -> None:
    name, write, parts = FILES[case]
    write(loras / name)
    for prompt in (apply_prompt(name), save_prompt(name)):
        message = refused(server, prompt)
        for part in (name, *parts):
            assert part in message, message
    assert not (loras / "ran").exists()


def test_a_missing_file(server: Server, loras: Path) -> None:
    message = refused(server, apply_prompt("nowhere.safetensors"))
    assert "nowhere.safetensors" in message and "loras" in message and "refresh" in message


def test_a_file_that_vanishes_after_it_was_queued(server: Server, loras: Path) -> None:
    shutil.copy(assets() / "loras" / LORA, loras / "brief.safetensors")
    assert server.queue(apply_prompt("brief.safetensors")).error is None
    (loras / "brief.safetensors").unlink()
    assert "brief.safetensors" in refused(server, apply_prompt("brief.safetensors", strict=True))


NOT_TEXTS: tuple[Any, ...] = (3, 0.5, True, None, {"a": 1}, {"__value__": []}, {"__value__": [["a"], "b", 3]})
"""What a client can post in place of a text. ComfyUI takes the value out of `__value__`, and a bare list of
two for a link."""

NAMES = (
    ".",
    "..",
    "/",
    "../" * 9 + "etc/passwd",
    "",
    "a\0b",
    "\ud800",
    "x\udc80",
    "\n",
    "a" * 300,
    "a/" * 200,
)
"""Names that no file in the loras folder has, or can have."""


@pytest.mark.parametrize("value", [*NOT_TEXTS, *NAMES], ids=ascii)
def test_what_is_no_name_of_a_file(server: Server, value: Any) -> None:
    """Both nodes that take one refuse it, in one sentence that names the input or the file."""
    named = ("input `{}` cannot be used", "not there", "no file is chosen")
    message = refused(server, apply_prompt(value))
    assert any(part.format("file") in message for part in named), message
    prompt = save_prompt()
    prompt["save"]["inputs"]["base"] = f"checkpoints/{value}" if isinstance(value, str) else value
    message = refused(server, prompt)
    assert any(part.format("base") in message for part in named), message


@pytest.mark.parametrize("value", [*NOT_TEXTS, "\ud800 = 1e999", "= " * 500, "[" * 500 + " = x"], ids=ascii)
def test_rules_that_are_no_rules(server: Server, value: Any) -> None:
    message = refused(server, apply_prompt(LORA, rules=value))
    assert "line 1" in message or "input `rules`" in message


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1e300, "x", None, {"__value__": [1]}], ids=repr
)
def test_a_strength_that_is_no_number(server: Server, value: Any) -> None:
    """It is refused before it runs, by an answer that is JSON: the host's own would have the value in it."""
    strengths = {"strength_model": value, "strength_clip": value}
    for load in (load_node(LORA, value), node("LycorisFromLoraStack", **strengths)):
        with pytest.raises(PromptRejected, match="strength") as caught:
            server.queue(apply_prompt(LORA) | {"load": load})
        json.dumps(caught.value.node_errors, allow_nan=False)


@pytest.mark.parametrize(("name", "passes"), [("speech", True), ("stricd", False)])
def test_a_widget_of_another_pack_on_the_page(server: Server, name: str, passes: bool) -> None:
    """Extensions add widgets to nodes of others. What is nearly the name of an input is refused."""
    prompt = apply_prompt(LORA)
    prompt["apply"]["inputs"][name] = 3
    run = server.wait(server.submit(prompt, workflow={"nodes": []}))
    assert (run.error is None) is passes


@pytest.mark.parametrize("value", [3, "x", None, True, {"__value__": ["a"]}], ids=repr)
def test_a_literal_in_place_of_a_link(server: Server, value: Any) -> None:
    for place, name in (("apply", "model"), ("apply", "clip"), ("apply", "stack"), ("rules", "stack")):
        # A text encoder or a stack may be missing.
        if value is not None or name == "model":
            prompt = apply_prompt(LORA)
            prompt[place]["inputs"][name] = value
            message = refused(server, prompt)
            if name == "stack" and isinstance(value, dict):
                # A list could be a LORA_STACK, so that its rows are looked at.
                assert "row 1 of the LORA_STACK" in message
            else:
                assert f"input `{name}`" in message and "Expected: a link to a" in message


def test_broken_files_break_nothing_but_themselves(server: Server, loras: Path) -> None:
    """The list has them all, each is refused in one sentence, and the others load."""
    (loras / "garbage.safetensors").write_bytes(os.urandom(4096))
    (loras / "dangling.safetensors").symlink_to(loras / "nowhere")
    (loras / "circle.safetensors").symlink_to(loras / "circle.safetensors")
    (loras / "folder.safetensors").mkdir()
    os.mkfifo(loras / "pipe.safetensors")
    # A byte that is no UTF-8: Python shows it as a lone surrogate.
    odd = "odd\udcff.safetensors"
    shutil.copy(assets() / "loras" / LORA, loras / odd)
    kind, options = server.object_info()["LycorisLoadAdapter"]["input"]["required"]["file"]
    listed = options["options"] if kind == "COMBO" else kind
    broken = {f"{name}.safetensors" for name in ("garbage", "dangling", "circle", "pipe")}
    assert {LORA, odd, *broken} <= set(listed) and "folder.safetensors" not in listed
    for name in (*sorted(broken), "folder.safetensors"):
        assert name in refused(server, apply_prompt(name))
    for name in (LORA, odd):
        assert server.queue(apply_prompt(name, strict=True)).error is None


@pytest.mark.parametrize(
    "prefix", ["../outside", "/tmp/outside", "a/../../outside", "", ".", "checkpoints/"], ids=ascii
)
def test_a_name_that_is_none_or_leaves_the_output_folder(server: Server, prefix: str) -> None:
    message = refused(server, save_prompt(prefix=prefix))
    assert "file name" in message and "folder/name" in message
    assert not list(server.base.parent.glob("outside*")) and not list(Path("/tmp").glob("outside*"))


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("checkpoints/a\0b", "cannot have this character"),
        ("checkpoints/\ud83d", "cannot have this character"),
        ("\udc80/merged", "cannot have this character"),
        ("a\x1b[2J", "cannot have this character"),
        ("circle/merged", "folder"),
        ("x" * 300 + "/merged", "folder"),
        ("x" * 300, "too long"),
    ],
    ids=ascii,
)
def test_a_name_that_no_file_can_have(server: Server, prefix: str, words: str) -> None:
    circle = server.base / "output" / "circle"
    circle.unlink(missing_ok=True)
    circle.symlink_to(circle)
    before = {*(server.base / "output").rglob("*")}
    message = refused(server, save_prompt(prefix=prefix))
    assert words in message and "Traceback" not in message
    assert {*(server.base / "output").rglob("*")} == before


def test_a_base_that_is_missing_or_named_without_its_folder(server: Server) -> None:
    for base in ("base.safetensors", "checkpoints/nowhere.safetensors", "loras/lora.safetensors"):
        prompt = save_prompt()
        prompt["save"]["inputs"]["base"] = base
        assert base.rpartition("/")[2] in refused(server, prompt)


@pytest.fixture
def unet_file(server: Server) -> Iterator[Path]:
    """A file of the base checkpoint's UNet. Copies of the whole take four times as much of the disk."""
    base = load_file(assets() / "checkpoints" / "base.safetensors")
    path = server.base / "models" / "checkpoints" / "unet.safetensors"
    save_file({key: tensor for key, tensor in base.items() if key.startswith(UNET)}, path)
    yield path
    path.unlink()


def test_a_truncated_base_writes_nothing(server: Server, unet_file: Path) -> None:
    broken = unet_file.with_name("broken.safetensors")
    broken.write_bytes(unet_file.read_bytes()[:-1000])
    prompt = save_prompt(prefix="checkpoints/from-broken")
    prompt["save"]["inputs"]["base"] = "checkpoints/broken.safetensors"
    message = refused(server, prompt)
    broken.unlink()
    assert "broken.safetensors" in message and "bytes" in message
    assert not list((server.base / "output").rglob("from-broken*"))


def test_an_interrupt_in_the_middle_of_an_export_leaves_nothing(server: Server, unet_file: Path) -> None:
    output = server.base / "output" / "checkpoints"
    begun: list[str] = []
    prompt = save_prompt(prefix="checkpoints/kept", base=unet_file.name)
    assert server.queue(prompt, on_start=begun.append).error is None
    # What comes before it may be kept from an earlier run.
    assert begun[-1] == "save"
    (kept,) = output.glob("kept_*")
    before = (kept.stat().st_size, kept.stat().st_mtime_ns)
    seen = threading.Event()

    def on_progress(name: str, value: int, maximum: int) -> None:
        if name == "save" and value < maximum and not seen.is_set():
            seen.set()
            server.interrupt()

    prompt = save_prompt(prefix="checkpoints/kept", base=unet_file.name, strength=0.5)
    run = server.queue(prompt, on_progress)
    assert seen.is_set() and run.interrupted
    assert list(output.glob("*kept*")) == [kept]
    assert (kept.stat().st_size, kept.stat().st_mtime_ns) == before
    kept.unlink()
