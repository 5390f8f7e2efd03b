"""The examples in docs/training.md and README.md run."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch
import train_task
from safetensors.torch import save_file
from torch import nn

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


def test_the_examples_of_the_readme_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with the files that they load, and with a small model that has the layer they name."""
    monkeypatch.chdir(tmp_path)
    path, model = "mid_block.attentions.0.proj_in", nn.Sequential()
    for name in reversed(path.split(".")):
        model = nn.ModuleDict({name: model if isinstance(model, nn.ModuleDict) else nn.Linear(8, 8)})
    layer = model.get_submodule(path)
    weight = layer.weight.detach().clone()
    for number, name in enumerate(("base", "model", "tuned")):
        values = weight + 0.01 * number * torch.randn(8, 8)
        save_file({f"model.diffusion_model.{path}.weight": values}, f"{name}.safetensors")
    factors = {"lora_up.weight": torch.randn(8, 2), "lora_down.weight": torch.randn(2, 8)}
    flat = f"lora_unet_{path.replace('.', '_')}"
    save_file({f"{flat}.{name}": value for name, value in factors.items()}, "style.safetensors")
    style = lyc.load_adapter("style.safetensors")
    given: dict[str, object] = {
        **dict.fromkeys(("module", "model"), model),
        **dict.fromkeys(("adapter", "oft", "style"), style),
        "weight": weight,
        "person": lyc.weighted(lyc.Entry(style, 0.5)),
        "batches": [torch.randn(4, 8) for _ in range(3)],
        "loss": lambda _, batch: layer(batch).square().mean(),
    }
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        for block in blocks("python", (ROOT / "README.md").read_text(encoding="utf-8")):
            exec(compile(block.replace("steps=1000", "steps=3"), "README.md", "exec"), given)
    assert "applied" in shown.getvalue() and "cosine" in shown.getvalue()
    written = {"merged", "learned", "half", "trained"}
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
