"""Biases in PEFT's files: of modules that have none, set to values, changed, and trained."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from networks import move
from safetensors.torch import save_file
from torch import Tensor, nn

import lycoris_ops as lyc


class Model(nn.Module):
    """A layer with a bias between two that have none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 12, bias=False)
        self.conv = nn.Conv1d(12, 12, 3, padding=1)
        self.last = nn.Linear(12, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.first(x).mT).mT
        return self.last(y.tanh())


X = torch.linspace(-1, 1, 80).reshape(2, 5, 8)
TARGETS = ["first", "conv", "last"]
CONFIGS: dict[str, Any] = {
    "lora_bias": peft.LoraConfig(r=2, lora_alpha=3, target_modules=["first", "last"], lora_bias=True),
    "lora_only": peft.LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS, bias="lora_only"),
    "all": peft.LoraConfig(r=2, lora_alpha=3, target_modules=["first", "last"], bias="all"),
    "ia3": peft.IA3Config(target_modules=["first", "last"], feedforward_modules=["last"]),
}


def shapes() -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in Model().state_dict().items()}


def in_peft(folder: Path) -> Tensor:
    """What PEFT computes with an adapter."""
    return peft.PeftModel.from_pretrained(Model(), str(folder)).eval()(X)


@pytest.mark.parametrize("form", ["bypass", "rebuilt"])
@pytest.mark.parametrize("name", CONFIGS)
def test_biases_are_read_and_written_as_peft_has_them(name: str, form: Any, tmp_path: Path) -> None:
    theirs: Any = peft.get_peft_model(Model(), CONFIGS[name])
    torch.manual_seed(1)
    move(theirs, 0.3)
    wanted = theirs.eval()(X)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    adapter = lyc.load_adapter(tmp_path / "theirs")
    assert adapter.unused_keys == ()
    model = Model()
    network = lyc.create_lycoris(model, weights=adapter, form=form).apply_to()
    assert torch.allclose(model(X), wanted, atol=1e-5)
    network.save_weights(tmp_path / "ours", dialect="peft")
    assert torch.allclose(in_peft(tmp_path / "ours"), wanted, atol=1e-5)
    lyc.save_adapter(adapter, tmp_path / "again", "peft", model=shapes())
    assert torch.allclose(in_peft(tmp_path / "again"), wanted, atol=1e-5)
    if name == "lora_bias":
        with pytest.raises(lyc.LycorisError, match=r"first: a layer adds to a bias that its module lacks"):
            network.merge_to()
    else:
        network.merge_to()
        assert torch.allclose(model(X), wanted, atol=1e-5)


def test_biases_of_other_modules_are_refused_beside_kinds_that_train_none(tmp_path: Path) -> None:
    """Alone they make a file of LN_TUNING, which PEFT loads."""
    model, bias = Model(), torch.linspace(-2, 2, 12)
    tensors = {"conv.set_bias": bias}
    lyc.save_adapter(lyc.adapter_of_tensors(tensors, name="made"), tmp_path / "alone", "peft", model=shapes())
    found = in_peft(tmp_path / "alone")
    assert model.conv.bias is not None
    model.conv.bias.data.copy_(bias)
    assert torch.allclose(found, model(X), atol=1e-6)
    tensors |= {"first.weight": torch.ones(12), "first.on_input": torch.tensor(False)}
    with pytest.raises(lyc.LayerError, match="conv: peft trains biases of other modules beside LORA, OFT"):
        lyc.save_adapter(
            lyc.adapter_of_tensors(tensors, name="made"), tmp_path / "no", "peft", model=shapes()
        )


@pytest.mark.parametrize(
    ("algorithm", "include"), [("lora", TARGETS), ("oftv2", ["biased", "last"]), ("ia3", ["first", "last"])]
)
def test_what_is_trained_with_its_bias_is_loaded_by_peft(
    algorithm: str, include: list[str], tmp_path: Path
) -> None:
    """A change of a bias is written as the bias's values. IA3 on outputs without a bias is PEFT's own IA3."""
    model = nn.Sequential(OrderedDict(biased=nn.Linear(8, 8), **dict(Model().named_children())))
    model.conv = nn.Conv1d(5, 5, 3, padding=1)
    network = lyc.create_lycoris(model, algorithm=algorithm, rank=2, include=include, bias=True).apply_to()
    move(network, 0.2)
    wanted = model(X)
    network.save_weights(tmp_path / "out", dialect="peft")
    network.restore()
    found = peft.PeftModel.from_pretrained(model, str(tmp_path / "out")).eval()(X)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_layer_is_not_merged_without_its_change_of_a_bias(tmp_path: Path) -> None:
    """`merge_to` refuses the same layers."""
    made = peft.get_peft_model(Model(), CONFIGS["lora_bias"])
    for name, value in made.named_parameters():
        if "lora_" in name:
            nn.init.normal_(value)
    made.save_pretrained(str(tmp_path))
    save_file(Model().state_dict(), tmp_path / "base.safetensors")
    adapter = lyc.load_adapter(tmp_path)
    for run, error in (
        (lyc.create_lycoris(Model(), weights=adapter).merge_to, lyc.LycorisError),
        (lambda: merged(adapter, tmp_path), lyc.MatchError),
    ):
        with pytest.raises(error, match=r"first.*adds to a bias that .* lacks"):
            run()
    assert not (tmp_path / "out.safetensors").exists()
    merged(adapter, tmp_path, "first = 0\nlast = 0\nconv = 1")


def merged(adapter: lyc.Adapter, folder: Path, rules: str | None = None) -> lyc.MergeResult:
    entry = lyc.Entry(adapter, rules=lyc.Rules.parse(rules) if rules else None)
    return lyc.merge_checkpoint(folder / "base.safetensors", lyc.Stack([entry]), folder / "out.safetensors")
