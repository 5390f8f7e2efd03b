"""The command line: the commands in this process, and a few as a user starts them."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from layers import lora
from models import unet
from safetensors.torch import load_file, save_file

import lycoris_ops as lyc
from lycoris_ops.commands import main
from lycoris_ops.commands.shared import stack_of
from tests.harness.facts import ROOT

MODEL = unet((6, 6))
NAME = "lora_unet_down_blocks_0_attentions_0_proj_in"


@dataclass
class Done:
    """What a command ended with."""

    returncode: object
    stdout: str
    stderr: str


def run(*arguments: str | Path) -> Done:
    """Run the command line with these arguments in this process, which takes no time to start."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: object = main([str(argument) for argument in arguments])
        # argparse ends the process itself after it has shown help or an error.
        except SystemExit as ended:
            status = ended.code
    return Done(status, out.getvalue(), err.getvalue())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of one LoRA layer, a key that nothing reads, and a long value in its metadata."""
    path = tmp_path / "source.safetensors"
    tensors = {f"{NAME}.{key}": tensor for key, tensor in lora((6, 6), 2).items()}
    tensors |= {f"{NAME}.alpha": torch.tensor(1.0), "lora_te_x.strange": torch.ones(50_000)}
    # Too long to be shown as a whole.
    save_file(tensors, path, {"ss_network_dim": "2", "ss_tag_frequency": "x" * 500})
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint with SD1.5's UNet, whose weights are zero."""
    path = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in MODEL.items()}, path)
    return path


def test_inspect_says_what_a_file_holds(file: Path, model: Path) -> None:
    done = run("inspect", file)
    assert done.returncode == 0 and not done.stderr
    for part in (
        "names of kohya, 0.20 MB",
        "1 lora: rank 2; alpha 1",
        "parts: diffusion model x1",
        "dtypes: F32 x4",
        "ss_network_dim = 2",
        "xxx...",
        "1 key of no layer:\n    lora_te_x.strange",
    ):
        assert part in done.stdout
    assert "applied" not in done.stdout
    assert "applied 1 of 1 layers" in run("inspect", file, "--model", model).stdout


def test_inspect_says_what_of_a_file_is_strange(tmp_path: Path) -> None:
    whole, half = lora((6, 6), 2), lora((6, 6), 2)
    tensors = {f"{NAME}.{key}": tensor for key, tensor in whole.items()}
    tensors |= {
        f"{NAME}.alpha": torch.tensor(float("nan")),
        "lora_te_x.lora_up.weight": half["lora_up.weight"],
    }
    save_file(tensors, tmp_path / "strange.safetensors")
    done = run("inspect", tmp_path / "strange.safetensors")
    assert done.returncode == 0 and not done.stderr
    assert "1 lora: rank 2; alpha nan" in done.stdout
    assert "1 layer that is not read:\n    lora_te_x: a lora layer without lora_down.weight" in done.stdout


def test_inspect_as_json(file: Path, model: Path) -> None:
    done = run("inspect", file, "--model", model, "--json")
    found = json.loads(done.stdout)
    assert found["kinds"] == {"lora": {"layers": 1, "ranks": {"2": 1}, "alphas": {"1": 1}}}
    assert found["match"] == {"applied": 1, "mismatches": {}, "unmatched": {}, "absent": {}}
    assert len(found["metadata"]["ss_tag_frequency"]) == 500 and found["unused_keys"] == ["lora_te_x.strange"]


def test_resize_and_extract_write_and_report(file: Path, model: Path, tmp_path: Path) -> None:
    small, tuned, made = (tmp_path / f"{name}.safetensors" for name in ("small", "tuned", "made"))
    done = run("resize", file, "-o", small, "--size", "rank 1", "--dialect", "comfy", "--base", model)
    assert done.returncode == 0, done.stderr
    assert "1 lora (rank 1), from lora 2" in done.stdout and "% of the energy" in done.stdout
    assert "1 unknown key of the file left out" in done.stdout
    assert lyc.load_adapter(small).metadata["ss_network_dim"] == "1"
    key = "diffusion_model.input_blocks.1.1.proj_in"
    assert {name: info.rank for name, info in lyc.load_adapter(small).info.items()} == {key: 1}
    assert run("bake", model, "--adapter", small, "-o", tuned).returncode == 0
    done = run("extract", model, tuned, "-o", made, "--size", "rank 1", "--dtype", "fp32", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["fit"]["error"] < 1e-3 and report["dialect"] == "comfy"
    weight = torch.zeros(6, 6)
    wanted, found = (lyc.load_adapter(path).layers[key].delta(weight) for path in (small, made))
    torch.testing.assert_close(found, wanted)
    # Names of arguments of the library are no options of a method.
    for option in ("seed=3", "codec=x"):
        refused = run("merge", "--adapter", file, "-o", tmp_path / "no.safetensors", "--option", option)
        assert refused.returncode == 2 and f"has no option `{option[:-2]}`" in refused.stderr
    for size, words in (("rank 0", "whole number from 1"), ("big", "cannot be understood")):
        refused = run("resize", file, "-o", tmp_path / "no.safetensors", "--size", size)
        assert refused.returncode == 2 and words in refused.stderr
        assert not (tmp_path / "no.safetensors").exists()


def test_what_is_extracted_keeps_the_models_own_names(model: Path, tmp_path: Path) -> None:
    """A dialect without a name for a layer, or a place for its kind, is refused before the work."""
    tuned = {key: torch.randn_like(value) for key, value in load_file(model).items()}
    save_file(tuned, tmp_path / "tuned.safetensors")
    llama = {
        "model.embed_tokens.weight": (16, 8),
        "model.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.layers.0.mlp.up_proj.weight": (12, 8),
        "lm_head.weight": (16, 8),
    }
    for name in ("base", "tuned"):
        save_file({key: torch.randn(s) for key, s in llama.items()}, tmp_path / f"{name}_llama.safetensors")
    out = tmp_path / "made.safetensors"
    for base, other, names in (
        (model, "tuned", {f"diffusion_model.{key.removeprefix('model.diffusion_model.')}" for key in tuned}),
        (tmp_path / "base_llama.safetensors", "tuned_llama", set(llama)),
    ):
        arguments = (base, tmp_path / f"{other}.safetensors", "--size", "rank 2", "--overwrite")
        done = run("extract", *arguments, "-o", out)
        assert done.returncode == 0, done.stderr
        found = lyc.load_adapter(out)
        assert set(found.info) == {name.removesuffix(".weight") for name in names}
        made = lyc.extract_adapter(base, tmp_path / f"{other}.safetensors", size=lyc.Rank(2))
        assert set(lyc.load_adapter(lyc.save_adapter(made, out).path).info) == set(found.info)
        # Written again after other work, it still has them.
        assert run("resize", out, "-o", tmp_path / "small.safetensors", "--overwrite").returncode == 0
        assert set(lyc.load_adapter(tmp_path / "small.safetensors").info) <= set(found.info)


def work(*_: object, **__: object) -> None:
    raise AssertionError("the work was begun")


@pytest.mark.parametrize("verb", ["resize", "merge", "extract"])
def test_a_dialect_that_cannot_say_it_is_refused_before_the_work(
    model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    for name in ("resize.resize.fit_layers", "merge.merge.fit_layers", "extract.extract.fit_layers"):
        monkeypatch.setattr(f"lycoris_ops.{name}", work)
    monkeypatch.setattr("lycoris_ops.merge.merge.exact_layers", work)
    given = {"merge": ["--adapter", file], "extract": [model, model]}.get(verb, [file])
    based = [] if verb == "extract" else ["--base", model]
    out = tmp_path / "x.safetensors"
    for dialect, kind, more, said in (
        ("diffusers", "lokr", based, "diffusers holds no lokr"),
        ("peft", "full", based, "peft holds no full"),
        ("peft", "auto", based, "peft holds no full"),
        ("diffusers", "lora", [], "without the model"),
    ):
        if verb == "merge" and kind != "lora":
            more = [*more, "--size", "rank 1"]
        if verb == "extract" and not more and dialect == "diffusers" and kind == "lora":
            continue
        where = out if dialect != "peft" else tmp_path / "peft"
        done = run(verb, *given, "-o", where, "--dialect", dialect, "--algorithm", kind, *more)
        assert done.returncode == 2 and said in done.stderr, done.stderr


def test_a_kind_that_the_own_dialect_of_a_file_has_not_is_refused_before_the_work(
    model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.safetensors"
    done = run("convert", file, "-o", own, "--dialect", "diffusers", "--model", model, "--drop-unread")
    assert done.returncode == 0, done.stderr

    monkeypatch.setattr("lycoris_ops.resize.resize.fit_layers", work)
    done = run("resize", own, "-o", tmp_path / "x.safetensors", "--algorithm", "lokr")
    assert done.returncode == 2 and "diffusers holds no lokr" in done.stderr, done.stderr


def test_convert_writes_and_reports(file: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    arguments = ("convert", file, "-o", out, "--dialect", "comfy", "--model", model, "--drop-unread")
    done = run(*arguments, "--dtype", "bf16", "--metadata", "note=a=b", "--metadata", "ss_tag_frequency=")
    assert done.returncode == 0, done.stderr
    assert "1 layer with the names of comfy" in done.stdout and "read back" in done.stdout
    assert done.stderr == "1 layers made\n"
    tensors = load_file(out)
    assert tensors["diffusion_model.input_blocks.1.1.proj_in.lora_up.weight"].dtype == torch.bfloat16
    metadata = lyc.load_adapter(out).metadata
    assert metadata["note"] == "a=b" and "ss_tag_frequency" not in metadata
    before = out.read_bytes()
    refused = run(*arguments)
    assert refused.returncode == 2 and "already" in refused.stderr and "--overwrite" in refused.stderr
    assert out.read_bytes() == before
    report = json.loads(run(*arguments, "--json", "--overwrite").stdout)
    assert report["path"] == str(out) and report["layers"] == 1
    assert "names of kohya to comfy" in report["changes"]


def test_convert_to_peft_writes_a_folder(file: Path, model: Path, tmp_path: Path) -> None:
    done = run("convert", file, "-o", tmp_path / "p", "--dialect", "peft", "--model", model, "--drop-unread")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "p" / "adapter_config.json").read_text())["lora_alpha"] == 1
    # PEFT names all files alike: the folders tell them apart.
    assert lyc.merge_adapters([(lyc.load_adapter(tmp_path / "p"), 1.0)]).name == "p"
    # The configuration alone is enough to refuse the folder.
    (tmp_path / "p" / "adapter_model.safetensors").unlink()
    done = run("convert", file, "-o", tmp_path / "p", "--dialect", "peft", "--model", model, "--drop-unread")
    assert done.returncode == 2 and "adapter_config.json: there is a file of that name" in done.stderr


def test_a_model_in_several_files(file: Path, tmp_path: Path) -> None:
    """The diffusion model and the text encoder are files of their own, whose keys have no prefix."""
    block = "text_model.encoder.layers.0.mlp.fc1"
    unet = {key.removeprefix("model.diffusion_model."): shape for key, shape in MODEL.items()}
    save_file({key: torch.zeros(shape) for key, shape in unet.items()}, tmp_path / "unet.safetensors")
    save_file({f"{block}.weight": torch.zeros(6, 768)}, tmp_path / "clip.safetensors")
    names = {NAME: lora((6, 6), 2), f"lora_te_{block.replace('.', '_')}": lora((6, 768), 2)}
    source = {f"{name}.{key}": tensor for name, layer in names.items() for key, tensor in layer.items()}
    save_file(source, tmp_path / "both.safetensors")
    models = [part for name in ("unet", "clip") for part in ("--model", tmp_path / f"{name}.safetensors")]
    out = tmp_path / "out.safetensors"
    done = run("convert", tmp_path / "both.safetensors", "-o", out, "--dialect", "comfy", *models)
    assert done.returncode == 0, done.stderr
    assert set(lyc.load_adapter(out).info) == {
        "diffusion_model.input_blocks.1.1.proj_in",
        f"text_encoders.clip_l.transformer.{block}",
    }
    twice = run(
        "inspect", file, "--model", tmp_path / "unet.safetensors", "--model", tmp_path / "unet.safetensors"
    )
    assert twice.returncode == 2 and "two files of the model hold the same layer" in twice.stderr


STRENGTHS = ((), ("2",), ("2", "0"))
"""What may stand after the file of an adapter."""


def test_bake_writes_a_merged_model_and_reports(tmp_path: Path, model: Path) -> None:
    """The base is zero, so a merged weight must be strength * up @ down, which is computed here in float64.

    The strengths of two adapters add up. The first merge is in a process of its own, as a user starts it, and
    in a folder that only has a link to `lycoris_ops`: no host and no nodes.
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lycoris_ops").symlink_to(ROOT / "lycoris_ops", target_is_directory=True)
    layer = lora((6, 6), 2)
    save_file({f"{NAME}.{key}": tensor for key, tensor in layer.items()}, tmp_path / "a.safetensors")
    key, out = "model.diffusion_model.input_blocks.1.1.proj_in.weight", tmp_path / "out.safetensors"
    arguments = ("bake", model, "--adapter", tmp_path / "a.safetensors", "-0.5", "-o", out)
    # Together with `arguments`, the same adapter twice: -0.5 + 2 = 1.5.
    again = ("--adapter", tmp_path / "a.safetensors", "2", "0", "--json", "--overwrite")
    done = subprocess.run(
        [sys.executable, "-m", "lycoris_ops", *map(str, arguments)],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "applied 1 of 1 layers" in done.stdout and "1 weight merged, 4 tensors kept" in done.stdout
    assert done.stderr == f"{out.stat().st_size} bytes written\n"
    exact = layer["lora_up.weight"].double() @ layer["lora_down.weight"].double()
    torch.testing.assert_close(load_file(out)[key].double(), -0.5 * exact, rtol=1e-6, atol=0.0)
    refused = run(*arguments)
    assert refused.returncode == 2 and "already" in refused.stderr and "--overwrite" in refused.stderr
    found = json.loads(run(*arguments, *again).stdout)
    assert found["merged"] == 1 and [entry["applied"] for entry in found["adapters"]] == [1, 1]
    torch.testing.assert_close(load_file(out)[key].double(), 1.5 * exact, rtol=1e-6, atol=0.0)
    given = argparse.Namespace(
        adapter=[(str(tmp_path / "a.safetensors"), *strengths) for strengths in STRENGTHS]
    )
    assert [(one.strength, one.strength_clip) for one in stack_of(given)] == [(1, None), (2, None), (2, 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "missing.safetensors"), "missing.safetensors: there is no such file"),
        (("inspect", "{file}", "--model", "model.ckpt"), "only a safetensors checkpoint can be streamed"),
        (
            ("convert", "{file}", "-o", "x.safetensors", "--dialect", "comfy", "--drop-unread"),
            "without the model",
        ),
        (("convert", "{file}", "-o", "x.ckpt", "--dialect", "kohya"), "only be written as safetensors"),
        (
            ("convert", "{file}", "-o", "x.safetensors", "--dialect", "lycoris"),
            "a part of the file is not read",
        ),
        (("convert", "{file}", "-o", "x.safetensors", "--dialect", "a1111"), "invalid choice: 'a1111'"),
        (("convert", "{file}", "-o", "x.safetensors", "--dialect", "kohya", "--metadata", "x"), "KEY=VALUE"),
        (("convert", "{file}"), "required"),
        (("bake", "{file}", "-o", "x.safetensors"), "required: --adapter"),
        (
            ("bake", "{file}", "-o", "x", "--adapter", "{file}", "1", "x"),
            r"FILE [STRENGTH [CLIP]] (found 1 x)",
        ),
        (("bake", "{file}", "-o", "x", "--adapter", "{file}", "nan"), "a strength must be a finite number"),
        (("bake", "x.gguf", "-o", "x", "--adapter", "{file}"), "only a safetensors checkpoint"),
        (("merge", "--adapter", "{file}", "-o", "x.safetensors", "--device", "gpu"), "device (found gpu: "),
        ((), "required"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    file: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    before = sorted(tmp_path.iterdir())
    done = run(*(argument.format(file=file) for argument in arguments))
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_is_one_line_and_leaves_nothing(
    file: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: int,
    status: int,
    words: str,
) -> None:
    """One that comes during `bake` ends the command with the status that shells give for it."""

    def interrupt(what: str) -> Callable[[int, int], None]:
        return lambda done, total: os.kill(os.getpid(), number)

    monkeypatch.setattr("lycoris_ops.commands.verbs.bake.progress_bar", interrupt)
    before = sorted(tmp_path.iterdir())
    # A shell that runs these tests in the background has them ignore Ctrl-C.
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = main(["bake", str(model), "--adapter", str(file), "-o", str(tmp_path / "out.safetensors")])
    finally:
        signal.signal(signal.SIGINT, heeded)
    out, err = capfd.readouterr()
    assert (found, out, err) == (status, "", f"error: {words}, nothing was written\n")
    assert sorted(tmp_path.iterdir()) == before


def test_ctrl_c_within_the_parser_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("argparse.ArgumentParser.parse_known_args", interrupt)
    assert main(["inspect", "x.safetensors"]) == 130
    assert capfd.readouterr() == ("", "error: interrupted, nothing was written\n")


LONG = "x" * 300
TOO_LONG = [
    ("inspect", LONG),
    ("inspect", "{file}", "--model", LONG),
    ("inspect", "{file}", "--plot", f"{LONG}.png"),
    ("convert", "{file}", "--dialect", "kohya", "-o", f"{LONG}.safetensors"),
    ("convert", "{file}", "--dialect", "kohya", "-o", f"{LONG}/o.safetensors"),
    ("convert", "{file}", "--dialect", "peft", "-o", LONG),
    ("resize", "{file}", "--size", "1", "-o", f"{LONG}.safetensors"),
    ("merge", "--adapter", "{file}", "-o", f"{LONG}.safetensors"),
    ("extract", "{file}", "{file}", "-o", f"{LONG}.safetensors"),
    ("bake", "{file}", "--adapter", "{file}", "-o", f"{LONG}.safetensors"),
    ("train", f"{LONG}.toml"),
]


@pytest.mark.parametrize("arguments", TOO_LONG, ids=lambda given: f"{given[0]}-{len(given)}")
def test_a_name_that_is_too_long_for_the_disk_is_one_line(
    arguments: tuple[str, ...],
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(file=file) for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no Ctrl-C to one process alone")
def test_a_signal_while_it_is_imported_is_one_line(file: Path) -> None:
    """From the first module of ours to the last, among them those of torch, which take the time."""
    cases = {
        "lycoris_ops.interrupts": signal.SIGINT,
        "torch.autograd": signal.SIGTERM,
        "lycoris_ops.commands.shared": signal.SIGINT,
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "lycoris_ops", "inspect", str(file)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A shell that runs these tests in the background has its children ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - one thread
        )
        for _ in cases
    ]
    for running, (moment, number) in zip(started, cases.items(), strict=True):
        assert running.stderr is not None
        while (line := running.stderr.readline()) and line.rpartition("|")[2].strip() != moment:
            pass
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
        said = [line for line in err.splitlines() if not line.startswith("import time:")]
        words = "interrupted" if number == signal.SIGINT else "terminated"
        # On a busy machine the process has imported all before the signal reaches it.
        assert said in ([f"error: {words}"], [f"error: {words}, nothing was written"]), moment
        assert (running.returncode, out) == (128 + number, ""), moment


def test_bad_input_ends_the_process_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "inspect", f"{tmp_path}/missing.safetensors"])
    with pytest.raises(SystemExit, match=r"^2$"):
        runpy.run_module("lycoris_ops", run_name="__main__")
    out, err = capsys.readouterr()
    assert not out
    assert err == (
        f"error: {tmp_path}/missing.safetensors: there is no such file. Check the name and the folder\n"
    )


def test_each_command_has_help() -> None:
    assert run("--version").stdout == f"lycoris_ops {lyc.__version__}\n"
    for verb in ("", "inspect", "convert", "bake", "extract", "merge"):
        done = run(*filter(None, (verb, "--help")))
        assert done.returncode == 0 and "usage: python -m lycoris_ops" in done.stdout
    assert "by default fp16" in run("extract", "--help").stdout
    told = " ".join(done.stdout.split())
    for method in lyc.merge_methods().values():
        assert all(f"{option.name}={option.default} ({option.expected})" in told for option in method.options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_report_that_nobody_reads_or_that_has_no_room(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    words = "error: the report cannot be printed (found No space left on device). The files that"
    for out, status, said in ((write, 0, ""), ("/dev/full", 2, words)):
        with open(out, "w", encoding="utf-8") as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            assert main(["inspect", str(file)]) == status
        shown = capfd.readouterr().err
        assert shown.startswith(said) and shown.count("\n") == bool(said)


@pytest.mark.parametrize("verb", ["resize", "merge", "extract", "convert"])
def test_an_output_that_cannot_be_is_told_before_the_work(
    file: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    for name in ("resize.resize_adapter", "merge.merge_adapters", "extract.extract_adapter"):
        monkeypatch.setattr(f"lycoris_ops.commands.verbs.{name}", work)
    monkeypatch.setattr("lycoris_ops.writing.save.Writer", work)
    given = {"merge": ["--adapter", file], "extract": [model, model]}.get(verb, [file])
    (tmp_path / "taken.safetensors").touch()
    peft = tmp_path / "of_peft"
    peft.mkdir()
    (peft / "adapter_config.json").touch()
    before = sorted(tmp_path.rglob("*"))
    for dialect, out, said in (
        ("peft", tmp_path / "x.safetensors", "only under one name"),
        ("peft", peft, "a file of that name already"),
        ("kohya", tmp_path / "x", "can only be written as safetensors"),
        ("comfy", tmp_path / "taken.safetensors", "a file of that name already"),
        ("lycoris", tmp_path / "none" / "x.safetensors", "no such folder"),
        ("diffusers", tmp_path / "source.safetensors" / "x.safetensors", "no such folder"),
    ):
        done = run(verb, *given, "-o", out, "--dialect", dialect)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    reads = {"extract": (), "convert": ("--model", model)}.get(verb, ("--base", model))
    done = run(verb, *given, *reads, "-o", model, "--dialect", "lycoris", "--overwrite")
    assert done.returncode == 2 and "is a file of the model" in done.stderr, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_the_dialect_of_the_source_says_where_the_output_may_be(tmp_path: Path) -> None:
    layer = lyc.ALGORITHMS["lora"].load(lora((6, 6), 2))
    source = lyc.Adapter.of({"base_model.model.a.b": layer}, name="source")
    lyc.save_adapter(source, tmp_path / "source", "peft")
    given = tmp_path / "source" / "adapter_model.safetensors"
    for command in (["resize", given, "--size", "rank 1"], ["merge", "--adapter", given]):
        done = run(*command, "-o", tmp_path / "x.safetensors")
        assert done.returncode == 2 and "only under one name" in done.stderr, done.stderr
        assert run(*command, "-o", tmp_path / str(command[0])).returncode == 0
