"""PEFT itself reads the folders that are written for it.

PEFT's forward pass must compute what the source of the adapter means.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import EPS32
from peft_files import KINDS, NARROW, Model, computed, saved
from torch import nn
from written import read

import lycoris_ops as lyc


def in_peft(folder: Path, model: nn.Module) -> nn.Module:
    """The model with the adapter, as PEFT loads it from a folder.

    Asserts that the file has exactly the tensors that PEFT asks for.
    """
    import peft
    from safetensors.torch import load_file

    adapted = peft.PeftModel.from_pretrained(model, str(folder)).eval().requires_grad_(False)
    wanted = set(peft.get_peft_model_state_dict(adapted))
    assert wanted == set(load_file(folder / "adapter_model.safetensors"))
    return adapted.double().base_model.model


def assert_same(theirs: dict[str, nn.Module], again: nn.Module, eps: float) -> None:
    """Assert that PEFT computes the same weight and bias with both adapters, on the same base."""
    for name, layer in theirs.items():
        mine: Any = again.get_submodule(name)
        mine.base_layer.load_state_dict(layer.base_layer.state_dict())  # type: ignore[union-attr]
        assert computed(layer)[0] is not None
        for before, after in zip(computed(layer), computed(mine), strict=True):
            assert (before is None) == (after is None)
            if before is not None and after is not None:
                assert (after - before).abs().max() <= 16 * eps * before.abs().max(), name


@pytest.mark.parametrize(
    ("kind", "file"), [*NARROW.items(), ("lora", torch.float32), ("lokr", torch.float32)]
)
def test_peft_reads_its_own_file_written_again(tmp_path: Path, kind: str, file: torch.dtype) -> None:
    """A file that PEFT wrote is read, and written again with a configuration made from its factors.

    PEFT must compute the same from both.
    """
    torch.manual_seed(0)
    spec = KINDS[kind]
    (tmp_path / "first").mkdir()
    adapter, layers = saved(spec, file, tmp_path / "first")
    lyc.save_adapter(adapter, tmp_path / "again", "peft")
    # The scale of a LoKr of two full factors is multiplied into one of them, in float32.
    assert_same(layers, in_peft(tmp_path / "again", Model(spec.bias)), max(spec.eps, EPS32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_peft_reads_the_ia3_of_inputs_of_lycoris(tmp_path: Path, dtype: torch.dtype) -> None:
    """PEFT's factor is l = 1 + w for a w of LyCORIS.

    The layers whose inputs PEFT scales are listed as feedforward in its configuration.
    """
    from safetensors.torch import load_file

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.conv = nn.Linear(6, 4), nn.Conv2d(6, 4, 3)

    # Small values: 1 + w has more digits than a dtype of 16 bits holds, so it is written in float32.
    values = {"linear": torch.randn(6) / 50, "conv": torch.randn(1, 6, 1, 1) / 50}
    tensors = {f"unet.{name}.weight": value.to(dtype) for name, value in values.items()}
    tensors |= {f"unet.{name}.on_input": torch.tensor(1) for name in values}
    source = read(tmp_path, tensors, "source")
    result = lyc.save_adapter(source, tmp_path / "folder", "peft")
    assert "1 + w written in place of w for 2 ia3 layers" in result.changes
    saved = load_file(tmp_path / "folder" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    model = in_peft(tmp_path / "folder", Net())
    for name in values:
        layer: Any = model.get_submodule(name)
        assert layer.is_feedforward
        changed, bias = computed(layer)
        weight = layer.base_layer.weight
        delta = source.layers[f"unet.{name}"].delta(weight)
        assert (weight + delta - changed).abs().max() <= 4 * EPS32 * changed.abs().max()
        assert torch.equal(bias, layer.base_layer.bias)


def test_the_ia3_of_outputs_of_lycoris_is_refused_since_peft_scales_the_bias(tmp_path: Path) -> None:
    tensors = {"unet.a.weight": torch.ones(4), "unet.a.on_input": torch.tensor(0)}
    source = read(tmp_path, tensors, "source")
    with pytest.raises(lyc.LayerError, match=r"scales the bias with the outputs.*on_input = 0"):
        lyc.save_adapter(source, tmp_path / "folder", "peft")


def test_peft_reads_what_was_another_tool_s(tmp_path: Path) -> None:
    """The adapter has two ranks and scales, and a path that is the end of another path.

    A layer that it does not adapt must stay a plain layer.
    """

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
    source = read(tmp_path, tensors, "source")
    lyc.save_adapter(source, tmp_path / "folder", "peft")
    config = json.loads((tmp_path / "folder" / "adapter_config.json").read_text())
    assert config["rank_pattern"] in ({r"^proj_out": 2}, {r"^block\.other": 4})
    net = Net()
    model = in_peft(tmp_path / "folder", net)
    assert isinstance(model.get_submodule("block.proj_out"), nn.Linear), "not adapted"
    for path in ranks:
        layer: Any = model.get_submodule(path)
        delta = source.layers[f"unet.{path}"].delta(layer.base_layer.weight)
        torch.testing.assert_close(layer.get_delta_weight("default"), delta.double())
