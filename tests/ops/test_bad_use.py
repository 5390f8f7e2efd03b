"""Faults of a layer or a file that show only when it is used: the error names file, layer and weight."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from layers import factors
from safetensors.torch import save_file
from torch import Tensor

import lycoris_ops as lyc
from lycoris_ops.bypass import Geometry
from lycoris_ops.commands import main
from lycoris_ops.stack.kept_plans import kept_plan

KEY, NAME = "diffusion_model.a.c.weight", "lora_unet_a_c"
SAYS = {
    "an alpha that is no number": (factors("lora", "linear", alpha=math.nan), "alpha is not a finite number"),
    "one of a rotation": (factors("oft", "linear", alpha=math.nan), "alpha is not a finite number"),
    "one of DoRA": (factors("lora-dora-out", "linear", alpha=math.inf), "alpha is not a finite number"),
}
"""Layers whose fault shows when they meet a weight, and what the error says of it."""
BEFORE = {
    "factors for the other side": (
        {"weight": torch.ones(18), "on_input": torch.tensor(0)},
        r"an ia3 layer does not fit the weight.*\[18, \*\].*\[12, 18\]",
    ),
    "a side that is not said": (
        {"ia3_l": torch.ones(1, 18, 1, 1)},
        "whether an ia3 layer of a convolution is for inputs or outputs",
    ),
    "a T-LoRA without its start": (factors("tlora", "linear"), "no sig_type.*principal or last or middle"),
}
"""Layers whose fault the header of a file does not show, but which is known before a weight is there."""


def written(folder: Path, layer: dict[str, Tensor], name: str = NAME) -> Path:
    save_file({f"{name}.{key}": tensor for key, tensor in layer.items()}, folder / "bad.safetensors")
    return folder / "bad.safetensors"


@pytest.mark.parametrize("case", SAYS)
def test_an_error_at_use_names_file_layer_and_weight(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    """The fault is met by a patch, by a kept plan, by a bypass, and by `bake` on the command line."""
    layer, says = SAYS[case]
    path = written(tmp_path, layer)
    save_file({KEY: torch.randn(12, 18)}, tmp_path / "base.safetensors")
    pairs = lyc.resolve(lyc.Stack([lyc.Entry(lyc.load_adapter(path))]), {KEY: (12, 18)}).pairs()[KEY]
    parts = [(match.read(entry.adapter), 1.0) for entry, match in pairs]
    with pytest.raises(lyc.LayerError, match=f"{path}: {NAME}: .*({says})"):
        lyc.patch_(torch.randn(12, 18), parts)

    def apply_kept() -> None:
        plan = kept_plan((12, 18), pairs)
        plan.apply_(torch.randn(12, 18), plan.tensors, plan.strengths)

    with pytest.raises(lyc.LayerError, match=f"{path}: {NAME}: .*({says})"):
        apply_kept()
    plan = lyc.BypassPlan.build(geometry(), parts)
    with pytest.raises(lyc.LayerError, match=f"{path}: {NAME} on a.c: .*({says})"):
        lyc.Bypass(torch.nn.Linear(18, 12), plan, name="a.c").meet(torch.float32, torch.device("cpu"))
    out = tmp_path / "out.safetensors"
    assert main(["bake", str(tmp_path / "base.safetensors"), "--adapter", str(path), "-o", str(out)]) == 2
    assert capfd.readouterr().err.startswith(f"error: {path}: {NAME} on {KEY}: ")
    assert not out.exists()


@pytest.mark.parametrize("case", BEFORE)
def test_an_error_that_needs_no_weight_comes_when_the_plan_is_made(tmp_path: Path, case: str) -> None:
    layer, says = BEFORE[case]
    path = written(tmp_path, layer)
    pairs = lyc.resolve(lyc.Stack([lyc.Entry(lyc.load_adapter(path))]), {KEY: (12, 18)}).pairs()[KEY]
    parts = [(match.read(entry.adapter), 1.0) for entry, match in pairs]
    for make in (lambda: kept_plan((12, 18), pairs), lambda: lyc.BypassPlan.build(geometry(), parts)):
        with pytest.raises(lyc.LayerError, match=f"{path}: {NAME}: .*{says}"):
            make()


def geometry() -> Geometry:
    found = lyc.geometry_of(torch.nn.Linear(18, 12))
    assert not isinstance(found, str)
    return found


def test_rows_that_cannot_be_changed_alone_name_their_layer() -> None:
    layer = lyc.ALGORITHMS["oft"].load(factors("oft", "linear"))
    part = lyc.Part(layer, (0, 5), (0, 5), "x.safetensors", NAME)
    with pytest.raises(lyc.LayerError, match=rf"^x\.safetensors: {NAME}: .*part of its rows"):
        lyc.patch_(torch.zeros(5, 18), [(part, 1.0)])


def test_a_layer_that_enlarges_another_weight_is_named() -> None:
    layer = lyc.ALGORITHMS["lora"].load(
        {
            "lora_up.weight": torch.zeros(6, 2),
            "lora_down.weight": torch.zeros(2, 4),
            "reshape_weight": torch.tensor([6, 4]),
        }
    )
    part = lyc.Part(layer, file="x.safetensors", key=NAME)
    with pytest.raises(lyc.LayerError, match=rf"^x\.safetensors: {NAME}: .*too small for the weight"):
        lyc.patch_(torch.zeros(12, 18), [(part, 1.0)])
