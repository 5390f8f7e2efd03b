"""The code on the pages of the documentation runs, and does what they say."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pages
import pytest
import torch
import train_task
from safetensors.torch import load_file

import lycoris_ops as lyc
from lycoris_ops.commands import main
from tests.harness.additions import added, outcome
from tests.harness.facts import ROOT

ADAPTERS = """
import torch

import lycoris_ops as lyc

up, down = torch.randn(2, 8, 2), torch.randn(2, 2, 6)
style, person = (
    lyc.adapter_of_tensors({"a.lora_up.weight": up[n], "a.lora_down.weight": down[n]}, name=str(n))
    for n in (0, 1)
)
"""
"""What the guides take for known."""


def cells(page: str, column: str) -> list[str]:
    """The code in the column of this name, the second one, in the first such table of a page."""
    text = (pages.DOCS / f"{page}.md").read_text(encoding="utf-8")
    table = text.partition(f"| {column} |")[2].partition("\n\n")[0]
    return [code for row in table.splitlines()[2:] for code in re.findall(r"`([^`]+)`", row.split("|")[2])]


def write_settings(path: Path) -> None:
    """The settings of the page of training, with the task that they name beside them."""
    (text,) = pages.blocks("training", "toml")
    path.write_text(text, encoding="utf-8")
    task = Path(train_task.__file__).read_text(encoding="utf-8")
    path.with_name("task.py").write_text(task, encoding="utf-8")


def test_the_page_of_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        pages.run("training", tmp_path)
    starts = {lyc.load_adapter(f"by_{name}.safetensors") for name in ("hand", "accelerate", "transformers")}
    for adapter in starts:
        assert all(layer.tensors()["lora_up"].any() for layer in adapter.layers.values())
    assert (tmp_path / "style-curves.png").exists() and (tmp_path / "style-checkpoints").is_dir()


def test_the_page_of_the_library_runs_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        pages.run("library", tmp_path)
    assert "applied 2 of 2 layers" in shown.getvalue() and "cosine" in shown.getvalue()
    written = {"base", "style", "person", "merged", "half"}
    assert {f"{name}.safetensors" for name in written} <= {file.name for file in tmp_path.iterdir()}
    assert (tmp_path / "style-peft" / "adapter_config.json").exists()


def test_an_engineers_day_ends_in_what_others_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        names = pages.run("day", tmp_path)
    assert (
        max(names[name] for name in ("experts", "baked", "head", "divided")) < 1e-5
        and names["extracted"] < 1e-3
    )
    found = {file.name for file in (tmp_path / "mixtral" / "checkpoint-10").iterdir()}
    assert "adapter_model.safetensors" in found and "model.safetensors" not in found
    assert len(list((tmp_path / "flux-merged").glob("*.safetensors"))) > 1


@pytest.mark.soak
def test_a_day_of_several_processes_ends_in_what_peft_computes(tmp_path: Path) -> None:
    first, *_, last = pages.blocks("day", "python")
    script = tmp_path / "day.py"
    script.write_text(f"{first}\n{last}\nassert divided < 1e-5\n", encoding="utf-8")
    processes = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    subprocess.run(
        [*processes, str(script)], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_the_page_of_ranks_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = pages.run("ranks", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"probe.safetensors", "plan.png", "race.png"}
    assert names["race"].winner.loss < names["race"].start and len(names["race"].heats) == 2
    assert all(torch.isfinite(parameter).all() for parameter in names["network"].parameters())


BEFORE_DIFFUSERS_AND_MERGEKIT = """
from types import SimpleNamespace

import torch
from networks import small_unet
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import lycoris_ops as lyc

sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 20}
tokens = {"max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
words = CLIPTextModel(CLIPTextConfig(num_hidden_layers=1, **sizes, **tokens)).eval()
pipe = SimpleNamespace(unet=small_unet(), text_encoder=words)


def factors(weight):
    return {"lora_B": torch.randn(weight.shape[0], 2), "lora_A": torch.randn(2, weight.shape[1])}


def file_of(name, *parts):
    tensors = {
        f"{part}{path.removeprefix('text_model.')}.{end}.weight": factor
        for part, model in parts
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and path.endswith(("to_q", "q_proj"))
        for end, factor in factors(layer.weight).items()
    }
    save_file(tensors, name)


file_of("style.safetensors", ("unet.", pipe.unet), ("text_encoder.text_model.", words))
file_of("person.safetensors", ("unet.", pipe.unet))
base = {"model.layers.0.mlp.up_proj.weight": torch.randn(12, 8), "model.norm.weight": torch.ones(8)}
tuned = [{key: value + torch.randn_like(value) for key, value in base.items()} for _ in range(2)]
for name, tensors in zip(("base", "code", "chat"), (base, *tuned)):
    save_file(tensors, f"{name}.safetensors")
"""
"""A pipeline, two files for it, and a model that was tuned twice."""


def test_the_page_of_other_tools_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        names = pages.run("coming-from", tmp_path, BEFORE_DIFFUSERS_AND_MERGEKIT)
    assert "1 layer of style.safetensors left out, for the text encoder" in shown.getvalue()
    unet = names["pipe"].unet
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 16))
    # `style` was at 0.8 when it was saved, which is no part of the file.
    ours = lyc.create_lycoris(unet, weights="style.safetensors").apply_to()
    wanted = unet(*inputs).sample.detach()
    ours.restore()
    unet.load_lora_adapter(load_file("style-for-diffusers.safetensors"), prefix="unet")
    assert (unet(*inputs).sample - wanted).abs().max() < 1e-5
    both, base = load_file("both.safetensors"), names["base"]
    for key, value in base.items():
        one, other = (change[key] - value for change in names["tuned"])
        # What TIES can leave of a value: nothing, that of one model, or the mean of both.
        left = torch.stack([torch.zeros_like(one), one, other, (one + other) / 2])
        assert ((both[key] - value) - left).abs().amin(0).max() < 1e-5
        assert not torch.equal(both[key], value)


@pytest.mark.parametrize("page", ["merging", "schedules", "block-rules"])
def test_a_line_of_python_on_a_guide_runs(page: str, tmp_path: Path) -> None:
    names = pages.run(page, tmp_path, ADAPTERS)
    assert len(names) > len({"lyc", "style", "person"})


def test_the_lines_of_rules_and_curves_on_the_guides_are_understood() -> None:
    rules = cells("block-rules", "write")
    assert len(rules) > 8
    for text in rules:
        lyc.Rules.parse(text, lyc.BLOCK_PRESETS)
    curves = [text for text in cells("schedules", "write") if text != "points"]
    assert len(curves) >= 5
    for text in curves:
        lyc.Schedule.parse(text)


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (lines,) = pages.blocks("command-line", "console")
    with contextlib.redirect_stdout(io.StringIO()):
        pages.run("library", tmp_path)
        Path("merged.safetensors").rename("tuned.safetensors")
        write_settings(tmp_path / "training.toml")
        for line in lines.splitlines():
            arguments = shlex.split(line)
            assert arguments[:3] == ["python", "-m", "lycoris_ops"]
            assert main(arguments[3:]) == 0, line
    assert {"both.png", "small.safetensors", "learned.safetensors", "both.safetensors"} <= set(os.listdir())


def test_what_the_page_of_adding_adds_works(tmp_path: Path) -> None:
    home = added(tmp_path)
    files = ("median", "sketcher", "lion", "train_loop", "architecture_records", "contract")
    chosen = "outer or median or sketcher or lion or PixelDiT or second_list or two_records"
    told = outcome(home, *(f"tests/ops/test_{file}.py" for file in files), "-k", chosen)
    assert int(re.findall(r"(\d+) passed", told)[0]) > 20


def test_a_kind_of_the_page_without_its_table_is_refused(tmp_path: Path) -> None:
    home = added(tmp_path)
    kind = home / "lycoris_ops" / "algorithms" / "outer.py"
    text = kind.read_text(encoding="utf-8")
    kind.write_text(re.sub(r"^    table: .*\n", "", text, flags=re.M), encoding="utf-8")
    with pytest.raises(AssertionError, match="Outer cannot be registered without table"):
        outcome(home, "tests/ops/test_contract.py", "-k", "outer")


def test_every_block_of_code_is_run_or_is_output() -> None:
    """A fence says its language. Those of the languages that run are on the pages that tests run."""
    ran = {
        "python": {
            "library",
            "ranks",
            "training",
            "merging",
            "schedules",
            "block-rules",
            "coming-from",
            "day",
            "pack-authors",
        },
        "json": {"pack-authors"},
        "toml": {"training"},
        "console": {"command-line", "install"},
        "diff": {"adding"},
        "text": None,
    }
    for page in sorted(pages.DOCS.rglob("*.md")):
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.M)[::2]
        for language in fences:
            assert language in ran, f"{page.name}: {language!r}"
            where = ran[language]
            assert where is None or page.stem in where, f"{page.name}: no test runs its {language}"


def test_the_settings_for_the_command_line_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_settings(tmp_path / "settings.toml")
    assert main(["train", "settings.toml"]) == 0
    assert lyc.load_adapter("by_command.safetensors").metadata["ss_steps"] == "20"


def test_every_optimiser_and_schedule_is_on_the_page() -> None:
    from lycoris_ops.train.optimisers import optimisers
    from lycoris_ops.train.schedules import schedules

    page = (pages.DOCS / "training.md").read_text(encoding="utf-8")
    for name in (*optimisers(), *schedules()):
        assert f"`{name}`" in page, name
