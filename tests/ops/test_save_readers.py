"""PEFT itself reads the folders that are written for it, and computes what it was to compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import EPS32
from test_conformance_peft import FILES, KINDS, Model, computed, saved
from torch import nn

import lycoris_ops as lyc


def read(folder: Path, model: nn.Module) -> nn.Module:
    """The adapted model, after PEFT found every tensor that its configuration asks for."""
    import peft
    from safetensors.torch import load_file

    adapted = peft.PeftModel.from_pretrained(model, str(folder)).eval().requires_grad_(False)
    wanted = set(peft.get_peft_model_state_dict(adapted))
    assert wanted == set(load_file(folder / "adapter_model.safetensors"))
    return adapted.double().base_model.model


def assert_same(theirs: dict[str, nn.Module], again: nn.Module, eps: float) -> None:
    for name, layer in theirs.items():
        mine: Any = again.get_submodule(name)
        mine.base_layer.load_state_dict(layer.base_layer.state_dict())  # type: ignore[union-attr]
        for before, after in zip(computed(layer), computed(mine), strict=True):
            if before is not None and after is not None:
                assert (after - before).abs().max() <= 16 * eps * before.abs().max(), name


@pytest.mark.parametrize("file", FILES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_its_own_file_written_again(tmp_path: Path, kind: str, file: torch.dtype) -> None:
    """Its configuration is made anew from the factors alone, with PEFT's own as the measure."""
    torch.manual_seed(0)
    spec = KINDS[kind]
    (tmp_path / "first").mkdir()
    adapter, layers = saved(spec, file, tmp_path / "first")
    lyc.save_adapter(adapter, tmp_path / "again", "peft")
    # The scale of a LoKr of two full factors is in a factor, in float32.
    assert_same(layers, read(tmp_path / "again", Model(spec.bias)), max(spec.eps, EPS32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_peft_reads_the_ia3_of_inputs_of_lycoris(tmp_path: Path, dtype: torch.dtype) -> None:
    """Its factor is l = 1 + w, on the inputs of layers that its configuration calls feedforward."""
    from safetensors.torch import load_file, save_file

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.conv = nn.Linear(6, 4), nn.Conv2d(6, 4, 3)

    values = {"linear": torch.randn(6) / 50, "conv": torch.randn(1, 6, 1, 1) / 50}
    tensors = {f"unet.{name}.weight": value.to(dtype) for name, value in values.items()}
    tensors |= {f"unet.{name}.on_input": torch.tensor(1) for name in values}
    save_file(tensors, tmp_path / "source.safetensors")
    source = lyc.load_adapter(tmp_path / "source.safetensors")
    result = lyc.save_adapter(source, tmp_path / "folder", "peft")
    assert "1 + w written for the w of 2 ia3 layers of inputs" in result.changes
    saved = load_file(tmp_path / "folder" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    model = read(tmp_path / "folder", Net())
    for name in values:
        layer: Any = model.get_submodule(name)
        assert layer.is_feedforward
        changed, bias = computed(layer)
        weight = layer.base_layer.weight
        delta = source.layers[f"unet.{name}"].delta(weight)
        assert (weight + delta - changed).abs().max() <= 4 * EPS32 * changed.abs().max()
        assert torch.equal(bias, layer.base_layer.bias)


def test_the_ia3_of_outputs_of_lycoris_is_refused_since_peft_scales_the_bias(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"unet.a.weight": torch.ones(4), "unet.a.on_input": torch.tensor(0)}
    save_file(tensors, tmp_path / "source.safetensors")
    source = lyc.load_adapter(tmp_path / "source.safetensors")
    with pytest.raises(lyc.LayerError, match=r"scales the bias with the outputs.*on_input = 0"):
        lyc.save_adapter(source, tmp_path / "folder", "peft")


def test_peft_reads_what_was_another_tool_s(tmp_path: Path) -> None:
    """Two ranks and scales, one path that is the end of another, and a layer that is not adapted."""
    from safetensors.torch import save_file

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj_out = nn.Linear(6, 4, bias=False)
            self.block = nn.ModuleDict({"proj_out": nn.Linear(6, 4), "other": nn.Linear(6, 4)})

    ranks = {"proj_out": (2, 3.0), "block.other": (4, 1.0)}
    tensors = {}
    for path, (rank, alpha) in ranks.items():
        tensors |= {
            f"unet.{path}.lora_down.weight": torch.randn(rank, 6),
            f"unet.{path}.lora_up.weight": torch.randn(4, rank),
            f"unet.{path}.alpha": torch.tensor(alpha),
        }
    save_file(tensors, tmp_path / "source.safetensors")
    source = lyc.load_adapter(tmp_path / "source.safetensors")
    lyc.save_adapter(source, tmp_path / "folder", "peft")
    config = json.loads((tmp_path / "folder" / "adapter_config.json").read_text())
    assert config["rank_pattern"] in ({r"^proj_out": 2}, {r"^block\.other": 4})
    net = Net()
    model = read(tmp_path / "folder", net)
    assert isinstance(model.get_submodule("block.proj_out"), nn.Linear), "not adapted"
    for path in ranks:
        layer: Any = model.get_submodule(path)
        delta = source.layers[f"unet.{path}"].delta(layer.base_layer.weight)
        torch.testing.assert_close(layer.get_delta_weight("default"), delta.double())
