"""The code on the pages of the documentation runs, and does what they say."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pages
import pytest
import torch
import train_task

import lycoris_ops as lyc
from lycoris_ops.commands import main


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


def test_the_page_of_ranks_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = pages.run("ranks", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"probe.safetensors", "plan.png", "race.png"}
    assert names["race"].winner.loss < names["race"].start and len(names["race"].heats) >= 3
    assert all(torch.isfinite(parameter).all() for parameter in names["network"].parameters())


def test_the_settings_for_the_command_line_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = pages.blocks("training", "toml")
    (tmp_path / "settings.toml").write_text(text, encoding="utf-8")
    (tmp_path / "task.py").write_text(Path(train_task.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["train", "settings.toml"]) == 0
    assert lyc.load_adapter("by_command.safetensors").metadata["ss_steps"] == "20"


def test_every_optimiser_and_schedule_is_on_the_page() -> None:
    from lycoris_ops.train.optimisers import optimisers
    from lycoris_ops.train.schedules import schedules

    page = (pages.DOCS / "training.md").read_text(encoding="utf-8")
    for name in (*optimisers(), *schedules()):
        assert f"`{name}`" in page, name
