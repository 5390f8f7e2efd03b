"""Adapters extracted from two models, and entries of a stack saved with their strengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layers import FEW, KINDS, base, home, load
from safetensors.torch import save_file
from torch import Tensor
from written import change, changes, error

import lycoris_ops as lyc

RANK = 4
UNET = "model.diffusion_model."
SHAPES = {
    "input_blocks.1.1.attn1.to_q.weight": (96, 64),
    "input_blocks.1.1.attn1.to_q.bias": (96,),
    "input_blocks.1.0.in_layers.2.weight": (48, 32, 3, 3),
    "input_blocks.1.1.norm.weight": (64,),
    "input_blocks.1.1.norm.bias": (64,),
    "middle_block.1.proj_in.weight": (64, 64),
    "modulation": (1, 6, 16),
    "scale": (),
}


def models(
    dtype: torch.dtype, rank: int = RANK
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """A base, what it is changed by (of low rank where it is a matrix), and the sum, all in a dtype."""
    before, change = {}, {}
    for key, shape in SHAPES.items():
        before[key] = torch.randn(shape).mul(0.05).to(dtype)
        if len(shape) in (2, 4):
            flat = before[key][0].numel()
            delta = torch.randn(shape[0], rank) @ torch.randn(rank, flat) * 0.002
            change[key] = delta.reshape(shape)
        else:
            change[key] = torch.randn(shape) * (0.01 if shape else 0.0)
    change["middle_block.1.proj_in.weight"] *= 0
    after = {key: (before[key].double() + change[key].double()).to(dtype) for key in before}
    return before, change, after


@pytest.mark.parametrize("size", [lyc.Rank(RANK), "auto"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_low_rank_change_is_found_again_and_rounding_is_not(
    tmp_path: Path, dtype: torch.dtype, size: Any
) -> None:
    before, change, after = models(dtype)
    # The files' layouts differ.
    save_file({f"{UNET}{key}": value for key, value in before.items()}, tmp_path / "base.safetensors")
    save_file(
        {f"diffusion_model.{key}": value for key, value in after.items()}, tmp_path / "tuned.safetensors"
    )
    made = lyc.extract_adapter(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", size=size)
    assert made.report is not None
    ranks = {row.layer: row.rank for row in made.report.rows}
    assert ranks["diffusion_model.input_blocks.1.1.attn1.to_q"] == RANK
    assert ranks["diffusion_model.input_blocks.1.0.in_layers.2"] == RANK
    assert made.report.left_out == {"diffusion_model.middle_block.1.proj_in": "because it changes nothing"}
    assert made.layers["diffusion_model.input_blocks.1.1.norm"].algorithm == "norm"
    path = lyc.save_adapter(made, tmp_path / "made.safetensors", "comfy").path
    found = changes(
        lyc.load_adapter(path), {f"{UNET}{key}": tuple(value.shape) for key, value in before.items()}
    )
    assert set(found) == {f"{UNET}{key}" for key in SHAPES if "proj_in" not in key and key != "scale"}
    for key, delta in found.items():
        wanted = change[key.removeprefix(UNET)]
        # A matrix of rank r catches only a share of the noise of bfloat16, a difference all of it.
        rounding = {torch.float32: 1e-3, torch.bfloat16: 0.15 if wanted.ndim in (2, 4) else 0.3}[dtype]
        assert error(delta, wanted) < rounding, key


def test_a_fused_attention_is_matched_with_separate_layers() -> None:
    # With a change that float32 would round.
    fused = torch.randn(192, 64, dtype=torch.float64)
    path = "double_blocks.0.img_attn.qkv"
    parts = dict(zip("qkv", fused.chunk(3), strict=True))
    # First a layer that only the tuned model has.
    separate = {"double_blocks.0.extra.weight": torch.randn(4, 4)}
    separate |= {f"double_blocks.0.img_attn.to_{part}.weight": value.clone() for part, value in parts.items()}
    delta = 1e-6 * torch.randn(64, 2).double() @ torch.randn(2, 64).double()
    separate["double_blocks.0.img_attn.to_k.weight"] += delta
    made = lyc.extract_adapter({f"{path}.weight": fused}, separate, size=lyc.Rank(2))
    found = changes(made, {f"{path}.weight": tuple(fused.shape)})[f"{path}.weight"]
    assert error(found[64:128], delta) < 1e-3 and not found[:64].any() and not found[128:].any()


def test_a_norm_is_one_by_whichever_name_a_model_has_its_weight() -> None:
    path = "double_blocks.0.img_attn.norm.query_norm"
    scale, weight = ({f"{path}.{name}": torch.randn(6)} for name in ("scale", "weight"))
    for before, after in ((scale, weight), (weight, scale)):
        (layer,) = lyc.extract_adapter(before, after).layers.values()
        assert layer.algorithm == "norm"


def test_what_the_models_do_not_share_is_told_and_strict_refuses_it() -> None:
    before, _, after = models(torch.float32)
    after["extra.weight"] = torch.randn(4, 4)
    del after["modulation"]
    after["input_blocks.1.0.in_layers.2.weight"] = torch.randn(48, 36, 3, 3)
    made = lyc.extract_adapter(before, after, size=lyc.Rank(RANK))
    notes = "\n".join((*made.report.missing, *made.report.notes)) if made.report else ""
    assert lyc.fit_verdict(made)[0] == "partly"
    for part in (
        "only the base model has: modulation",
        "only the tuned model has: extra.weight",
        "[48, 36, 3, 3]",
    ):
        assert part in notes
    with pytest.raises(lyc.MatchError, match=r"not have the same layers.*modulation"):
        lyc.extract_adapter(before, after, size=lyc.Rank(RANK), strict=True)
    with pytest.raises(lyc.MatchError, match=r"no layer in common"):
        lyc.extract_adapter(before, {"other.weight": torch.randn(4, 4)})
    after = {key: value.clone() for key, value in before.items()}
    after["middle_block.1.proj_in.weight"][3, 5] = float("nan")
    for one, tuned in ((before, after), (after, before)):
        with pytest.raises(lyc.LayerError, match=r"proj_in.*NaN or infinity") as raised:
            lyc.extract_adapter(one, tuned)
        # The model that has it.
        assert raised.value.file == ("the tuned model" if tuned is after else "the base model")
    with pytest.raises(lyc.PlanError, match=r"^the tuned model: nothing is left"):
        lyc.extract_adapter(before, before)
    # Values that both have are no change: a host leaves what a checkpoint lacks as the memory was.
    before["middle_block.1.proj_in.weight"][3, 5:7] = torch.tensor([float("nan"), float("inf")])
    after["middle_block.1.proj_in.weight"][3, 6] = float("inf")
    key = next(key for key in before if before[key].ndim == 2 and "proj_in" not in key)
    after[key] += torch.outer(torch.randn(len(after[key])), torch.ones(after[key].shape[1]))
    assert list(lyc.extract_adapter(before, after).info) == [key.removesuffix(".weight")]


@pytest.mark.parametrize("algorithm", ["lora", "auto"])
def test_a_budget_is_met_and_keeps_more_than_a_uniform_rank(
    tmp_path: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More ranks are looked at as they are needed.
    monkeypatch.setattr("lycoris_ops.fit.settings.LARGEST", 8)
    before, after = {}, {}
    for number in range(12):
        key = f"blocks.{number}.linear.weight"
        left, right = (torch.linalg.qr(torch.randn(size, 60))[0] for size in (160, 120))
        spectrum = torch.arange(1, 61) ** -(0.2 + 0.15 * number) * (1 + number % 3)
        before[key], after[key] = torch.zeros(160, 120), (left * spectrum) @ right.T
    uniform = lyc.extract_adapter(before, after, size=lyc.Rank(24))
    path = lyc.save_adapter(
        uniform,
        tmp_path / "uniform.safetensors",
        "comfy",
        model={k: tuple(v.shape) for k, v in before.items()},
    ).path
    size = Path(path).stat().st_size
    made = lyc.extract_adapter(before, after, algorithm, lyc.Budget(size))
    path = lyc.save_adapter(
        made, tmp_path / "made.safetensors", "comfy", model={k: tuple(v.shape) for k, v in before.items()}
    ).path
    assert 0.98 * size <= Path(path).stat().st_size <= size
    assert made.report is not None and uniform.report is not None
    counted = lyc.extract_adapter(before, after, algorithm, lyc.Budget(parameters=uniform.report.parameters))
    assert counted.report is not None
    assert 0.98 * uniform.report.parameters <= counted.report.parameters <= uniform.report.parameters
    assert counted.report.error < uniform.report.error
    share = lyc.extract_adapter(before, after, algorithm, lyc.Energy(0.9))
    assert share.report is not None and share.report.error <= 0.1**0.5
    large = lyc.extract_adapter(before, after, "lora", lyc.Ratio(1.2))
    assert large.report is not None and large.report.parameters >= 0.98 * 12 * 160 * 120 / 1.2
    with pytest.raises(lyc.PlanError, match=r"below the smallest adapter.*at least 280 parameters"):
        lyc.extract_adapter(before, after, "lora", lyc.Budget(parameters=100))


# Entries saved with what weights them.


def proportional(kind: str) -> bool:
    spec = KINDS[kind]
    return (spec.additive or spec.algorithm in ("glora", "ia3", "singlora", "vera")) and kind != "full-set"


@pytest.mark.parametrize(("kind", "weight"), [case for case in FEW if case[1] == home(case[0])])
def test_an_entry_is_saved_with_its_strength_in_one_tensor_of_each_product(kind: str, weight: str) -> None:
    layer = load(kind, weight)
    held = lyc.Adapter.of({"lora_unet_a_attn": layer}, name="test")
    entry = lyc.Entry(held, strength=-0.3)
    if not proportional(kind):
        with pytest.raises(lyc.LayerError, match=r"cannot be multiplied by a number"):
            lyc.weighted(entry)
        return
    made = lyc.weighted(entry).layers["lora_unet_a_attn"]
    met = base(weight)
    torch.testing.assert_close(made.delta(met), -0.3 * layer.delta(met), rtol=1e-5, atol=1e-6)
    assert type(made) is type(layer) and made.rank == layer.rank
    # A factor that stands twice in the formula would square the strength: alpha has it there.
    alpha = layer.alpha if not layer.table.twice else pytest.approx(-0.3 * layer.alpha)
    assert made.alpha == alpha


def test_rules_and_two_strengths_need_the_model_where_names_do_not_tell() -> None:
    layers = {
        "lora_unet_input_blocks_1_1_attn": load("lora", "linear"),
        "lora_unet_middle_block_1_attn": load("lora", "linear"),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": load("lora", "linear"),
    }
    held = lyc.Adapter.of(layers, name="test")
    found = lyc.weighted(lyc.Entry(held, strength=0.5, strength_clip=0.25))
    shape = (12, 18)
    factors = [error(change(found.layers[name], shape), change(layers[name], shape)) for name in layers]
    assert factors == pytest.approx([0.5, 0.5, 0.75], rel=1e-3)
    ruled = lyc.Entry(held, strength=0.5, rules=lyc.Rules.parse("mid = 0\nin = 2"))
    with pytest.raises(lyc.LycorisError, match=r"depends on its place in the model"):
        lyc.weighted(ruled)
    model = {
        f"{UNET}input_blocks.1.1.attn.weight": (12, 18),
        f"{UNET}middle_block.1.attn.weight": (12, 18),
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (12, 18),
    }
    made = lyc.weighted(ruled, model)
    assert set(made.info) == {
        "lora_unet_input_blocks_1_1_attn",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    }
    torch.testing.assert_close(
        made.layers["lora_unet_input_blocks_1_1_attn"].delta(torch.zeros(12, 18)),
        layers["lora_unet_input_blocks_1_1_attn"].delta(torch.zeros(12, 18)),
    )
