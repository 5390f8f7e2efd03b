"""The examples in docs/training.md and docs/library.md run."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import train_task

import lycoris_ops as lyc
from lycoris_ops.commands import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def test_the_examples_in_python_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks("python"):
            exec(compile(block, "docs/training.md", "exec"), space)
    starts = {lyc.load_adapter(f"by_{name}.safetensors") for name in ("hand", "accelerate", "transformers")}
    for adapter in starts:
        assert all(layer.tensors()["lora_up"].any() for layer in adapter.layers.values())
    assert (tmp_path / "style-curves.png").exists() and (tmp_path / "style-checkpoints").is_dir()


def test_the_page_of_the_library_runs_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile("\n".join(blocks("python", page)), "docs/library.md", "exec"), {})
    assert "applied 2 of 2 layers" in shown.getvalue() and "cosine" in shown.getvalue()
    written = {"base", "style", "person", "merged", "half"}
    assert {f"{name}.safetensors" for name in written} <= {file.name for file in tmp_path.iterdir()}
    assert (tmp_path / "style-peft" / "adapter_config.json").exists()


def test_the_settings_for_the_command_line_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = blocks("toml")
    (tmp_path / "settings.toml").write_text(text, encoding="utf-8")
    (tmp_path / "task.py").write_text(Path(train_task.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["train", "settings.toml"]) == 0
    assert lyc.load_adapter("by_command.safetensors").metadata["ss_steps"] == "20"


def test_every_optimiser_and_schedule_is_on_the_page() -> None:
    from lycoris_ops.train.optimisers import optimisers
    from lycoris_ops.train.schedules import schedules

    for name in (*optimisers(), *schedules()):
        assert f"`{name}`" in PAGE, name
