"""The names of written adapters, and layers that a dialect splits or joins.

The reference is the source's effect: an adapter that is read back must change every weight of a model as
the source does.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import pytest
import torch
from layers import Factors, factors, loha, lokr, lora, rand
from models import flux, unet
from torch import Tensor
from written import adapter, changes, read

import lycoris_ops as lyc

Shapes = dict[str, tuple[int, ...]]


def saved(source: lyc.Adapter, dialect: str, model: Shapes | None = None, name: str = "out") -> lyc.Adapter:
    """The adapter after it has been written in a dialect and read back."""
    path = Path(source.path).with_name(name if dialect == "peft" else f"{name}.safetensors")
    return lyc.load_adapter(lyc.save_adapter(source, path, dialect, model=model).path)  # type: ignore[arg-type]


def assert_same(before: lyc.Adapter, after: lyc.Adapter, model: Shapes) -> None:
    """Assert that two adapters make the same change to every weight and bias of a model."""
    ours, theirs = changes(before, model), changes(after, model)
    changed = {key for key, change in theirs.items() if change.any()}
    assert changed and changed == {key for key, change in ours.items() if change.any()}
    for key in changed:
        torch.testing.assert_close(theirs[key], ours[key], rtol=1e-6, atol=1e-8)


CLIP = "text_model.encoder.layers.0.mlp.fc1"
T5 = "encoder.block.0.layer.0.SelfAttention.q"
# Tiny models with the layers by which their architectures are recognised.
SD15: Shapes = {**unet((6, 6)), f"cond_stage_model.transformer.{CLIP}.weight": (6, 6)}
SDXL: Shapes = {
    **unet((6, 6)),
    "model.diffusion_model.label_emb.0.0.weight": (6, 6),
    f"clip_l.transformer.{CLIP}.weight": (6, 6),
    f"clip_g.transformer.{CLIP}.weight": (6, 6),
}
# As KOALA 700M, which diffusers calls a UNet too.
NO_MIDDLE: Shapes = {key: shape for key, shape in unet((6, 6)).items() if "middle_block" not in key}
FLUX: Shapes = {
    **flux(8),
    f"clip_l.transformer.{CLIP}.weight": (6, 6),
    f"t5xxl.transformer.{T5}.weight": (6, 6),
}
UNET = "input_blocks.1.1.proj_in"
IN_DIFFUSERS = "down_blocks.0.attentions.0.proj_in"


def flat(path: str) -> str:
    return path.replace(".", "_")


@pytest.mark.parametrize(
    ("model", "dialect", "names"),
    [
        (SD15, "kohya", {f"lora_unet_{flat(IN_DIFFUSERS)}", f"lora_te_{flat(CLIP)}"}),
        (SD15, "comfy", {f"diffusion_model.{UNET}", f"text_encoders.clip_l.transformer.{CLIP}"}),
        (SD15, "diffusers", {f"unet.{IN_DIFFUSERS}", f"text_encoder.{CLIP}"}),
        (SD15, "lycoris", {f"lycoris_{flat(IN_DIFFUSERS)}", f"lycoris_{flat(CLIP)}"}),
        (
            SDXL,
            "kohya",
            {f"lora_unet_{flat(UNET)}", f"lora_te1_{flat(CLIP)}", f"lora_te2_{flat(CLIP)}"},
        ),
        (
            SDXL,
            "comfy",
            {f"diffusion_model.{UNET}", *(f"text_encoders.clip_{x}.transformer.{CLIP}" for x in "lg")},
        ),
        (NO_MIDDLE, "diffusers", {f"unet.{IN_DIFFUSERS}"}),
        (SDXL, "diffusers", {f"unet.{IN_DIFFUSERS}", f"text_encoder.{CLIP}", f"text_encoder_2.{CLIP}"}),
        (
            FLUX,
            "kohya",
            {"lora_unet_double_blocks_0_img_attn_proj", f"lora_te1_{flat(CLIP)}", f"lora_te3_{flat(T5)}"},
        ),
        (
            FLUX,
            "diffusers",
            {
                "transformer.transformer_blocks.0.attn.to_out.0",
                f"text_encoder.{CLIP}",
                f"text_encoder_2.{T5}",
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_are_those_of_the_tool_for_that_model(
    tmp_path: Path, model: Shapes, dialect: str, names: set[str]
) -> None:
    """An adapter is written with a tool's names, and then with the host's names again.

    It must have the same effect both times.
    """
    own = {key: f"text_encoders.{key}" for key in model if key.startswith(("clip_", "t5xxl"))}
    paths = [f"diffusion_model.{UNET if model is not FLUX else 'double_blocks.0.img_attn.proj'}"]
    paths += [name.removesuffix(".weight") for name in own.values()]
    if model is SD15:
        paths.append(f"text_encoders.clip_l.transformer.{CLIP}")
    size = 8 if model is FLUX else 6
    layers = {path: lora((6, 6) if "text" in path else (size, size), 2) for path in paths}
    source = adapter(tmp_path, layers)
    there = saved(source, dialect, model)
    assert set(there.info) == names
    assert_same(source, there, model)
    back = saved(there, "comfy", model, "back")
    assert set(back.info) == set(source.info)
    assert_same(source, back, model)


def test_two_encoders_need_a_dialect_that_tells_them_apart(tmp_path: Path) -> None:
    source = adapter(tmp_path, {f"lora_te{n}_{flat(CLIP)}": lora((6, 6), 2) for n in (1, 2)})
    with pytest.raises(lyc.MatchError, match=r"two layers would get the same name in lycoris.*diffusers"):
        saved(source, "lycoris", SDXL)
    with pytest.raises(lyc.MatchError, match="two layers would get the same name in peft"):
        saved(source, "peft", SDXL)


@pytest.mark.parametrize(
    ("before", "dialect", "after"),
    [
        ("unet.a.b", "peft", "base_model.model.a.b"),
        ("unet.a.b", "lycoris", "lycoris_a_b"),
        ("unet.base_model.model.a.b", "peft", "base_model.model.a.b"),
        ("base_model.model.a.b", "lycoris", "lycoris_a_b"),
        ("lora_transformer_a_b", "lycoris", "lycoris_a_b"),
        ("diffusion_model.double_blocks.0.x", "kohya", "lora_unet_double_blocks_0_x"),
        ("lora_unet_a_b", "kohya", "lora_unet_a_b"),
        ("lora_te3_a_b", "kohya", "lora_te3_a_b"),
        ("lycoris_a_b", "lycoris", "lycoris_a_b"),
        ("text_encoder_2.a.b", "diffusers", "text_encoder_2.a.b"),
        ("model.diffusion_model.a.b", "comfy", "model.diffusion_model.a.b"),
    ],
)
def test_names_that_keep_their_path_need_no_model(
    tmp_path: Path, before: str, dialect: str, after: str
) -> None:
    """Only the prefix changes, and dots may become underscores."""
    assert list(saved(adapter(tmp_path, {before: lora((6, 6), 2)}), dialect).info) == [after]


@pytest.mark.parametrize(
    ("before", "dialect"),
    [
        ("lora_unet_a_b", "comfy"),
        ("lora_unet_a_b", "lycoris"),
        ("lycoris_a_b", "kohya"),
        ("unet.a.b", "comfy"),
        ("unet.a.b", "kohya"),
        ("base_model.model.a.b", "diffusers"),
        ("diffusion_model.a.b", "diffusers"),
        ("diffusion_model.input_blocks.0.0", "kohya"),
        ("text_encoders.clip_l.transformer.a", "kohya"),
        ("a.b", "comfy"),
    ],
)
def test_all_other_names_need_one_and_say_so(tmp_path: Path, before: str, dialect: str) -> None:
    source = adapter(tmp_path, {before: lora((6, 6), 2)})
    with pytest.raises(lyc.MatchError, match=rf"{before}: .*as {dialect} without the model.*--model"):
        saved(source, dialect)
    assert not (tmp_path / "out.safetensors").exists()


def test_bare_names_that_one_dialect_refuses_may_be_held_by_others(tmp_path: Path) -> None:
    """mlx keeps a bare name, but holds no LoHa. Others hold it, and only lack its name without a model."""
    source = adapter(tmp_path, {"blocks.0.attn.to_q": loha((12, 12), 2)})
    with pytest.raises(
        lyc.LayerError, match=r"mlx holds.*Give the model .*as kohya, comfy, peft or lycoris$"
    ):
        lyc.save_adapter(source, tmp_path / "out", "mlx")


def test_a_layer_that_the_model_has_not_is_an_error(tmp_path: Path) -> None:
    source = adapter(
        tmp_path,
        {f"lora_te_{flat(CLIP)}": lora((6, 6), 2), "lora_unet_input_blocks_1_1_proj": lora((6, 6), 2)},
    )
    with pytest.raises(lyc.MatchError, match=r"1_1_proj: the model has no layer.*proj_in.*another model"):
        saved(source, "comfy", SD15)
    with pytest.raises(lyc.MatchError, match=r"lora_te_.*Give every part"):
        saved(adapter(tmp_path, {f"lora_te_{flat(CLIP)}": lora((6, 6), 2)}), "comfy", unet((6, 6)))
    with pytest.raises(lyc.MatchError, match=r"does not fit the model.*\[7, 6\].*\[6, 6\]"):
        saved(adapter(tmp_path, {f"lora_te_{flat(CLIP)}": lora((7, 6), 2)}), "comfy", SD15)


# Dialects in which one layer of the source is several, or several are one.

QKV = "diffusion_model.double_blocks.0.img_attn.qkv"
LINEAR1 = "diffusion_model.single_blocks.0.linear1"
FINAL = "diffusion_model.final_layer.adaLN_modulation.1"
SPLIT = {f"transformer.transformer_blocks.0.attn.to_{x}" for x in "qkv"}


def dora(made: Factors, outputs: int) -> Factors:
    """Add a DoRA magnitude for each output to the tensors of a layer."""
    return {**made, "dora_scale": 1 + torch.rand(outputs, 1)}


def test_a_fused_layer_is_cut_and_joined_again_bit_by_bit(tmp_path: Path) -> None:
    layers = {
        QKV: {**lora((24, 8), 2), "alpha": torch.tensor(3.0)},
        LINEAR1: {**lora((56, 8), 2), "alpha": torch.tensor(1.0)},
    }
    source = adapter(tmp_path, layers)
    there = saved(source, "diffusers", FLUX)
    single = "transformer.single_transformer_blocks.0"
    assert set(there.info) == {*SPLIT, *(f"{single}.attn.to_{x}" for x in "qkv"), f"{single}.proj_mlp"}
    assert_same(source, there, FLUX)
    back = saved(there, "comfy", FLUX, "back")
    assert set(back.info) == {QKV, LINEAR1} and {info.rank for info in back.info.values()} == {2}
    assert_same(source, back, FLUX)
    straight = saved(source, "kohya", FLUX, "kohya")
    assert set(straight.info) == {
        flat(f"lora_unet_{name.removeprefix('diffusion_model.')}") for name in layers
    }


@pytest.mark.parametrize("front", ["", "module."])
def test_a_save_looks_each_name_up_once_and_recognises_the_model_once(tmp_path: Path, front: str) -> None:
    """The names of the source, and those that are written, since a reader must find the same rows by them.

    A name with a front is looked up with it, and without each front that it can be.
    """
    layers = {f"{front}{name}": lora((rows, 8), 2) for name, rows in ((QKV, 24), (LINEAR1, 56))}
    source = adapter(tmp_path, layers)
    looked_up, recognised = Counter[str](), 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal recognised
        if event == "call" and frame.f_code.co_name == "_indexed":
            looked_up[frame.f_locals["name"].text] += 1
        recognised += event == "call" and frame.f_code.co_name == "recognised"

    sys.setprofile(count)
    try:
        result = lyc.save_adapter(source, tmp_path / "out.safetensors", "diffusers", model=FLUX)
    finally:
        sys.setprofile(None)
    assert {*layers, QKV, LINEAR1, *lyc.load_adapter(result.path).info} <= looked_up.keys()
    assert set(looked_up.values()) == {1}
    assert recognised == 1


def own_calls(folder: Path, dialect: str, layers: int) -> int:
    """The Python calls of the package in one save of a LoRA with so many layers in its own dialect."""
    names = {
        f"diffusion_model.blocks.{number}.proj": {**lora((8, 8), 4), "alpha": torch.tensor(2.0)}
        for number in range(layers)
    }
    model: Shapes = {f"{name}.weight": (8, 8) for name in names}
    source = saved(adapter(folder, names), dialect, model, f"source{layers}")
    path = folder / (f"out{layers}" if dialect == "peft" else f"out{layers}.safetensors")
    calls, package = 0, str(Path(lyc.__file__).parent)

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(package)

    lyc.save_adapter(source, path)
    sys.setprofile(count)
    try:
        lyc.save_adapter(source, path)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(("dialect", "most"), [("comfy", 368), ("peft", 382)])
def test_a_save_makes_few_calls_for_each_layer(tmp_path: Path, dialect: str, most: int) -> None:
    """A save of many layers must not get slower call by call. The bounds are 2 % above the counts."""
    assert own_calls(tmp_path, dialect, 30) - own_calls(tmp_path, dialect, 10) <= 20 * most


@pytest.mark.parametrize("dialect", ["comfy", "kohya", "peft"])
def test_a_name_is_read_once_and_looked_up_once(tmp_path: Path, dialect: str) -> None:
    """An adapter is opened and put on a module: its names are taken apart when the file is opened."""
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))})
    names = [f"diffusion_model.blocks.{number}" for number in range(4)]
    shapes: Shapes = {f"{name}.weight": (8, 8) for name in names}
    path = saved(adapter(tmp_path, {name: lora((8, 8), 4) for name in names}), dialect, shapes).path
    split, looked_up = Counter[str](), Counter[str]()

    def count(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_name
        if event == "call" and name == "of" and frame.f_code.co_filename.endswith("layer_name.py"):
            split[frame.f_locals["text"]] += 1
        if event == "call" and name == "_indexed":
            looked_up[frame.f_locals["name"].text] += 1

    sys.setprofile(count)
    try:
        # With a cache of its own it is opened anew.
        source = lyc.load_adapter(path, cache=lyc.TensorCache(0))
        network = lyc.create_lycoris(model, weights=source).apply_to()
    finally:
        sys.setprofile(None)
    assert len(network.members) == 4
    assert split == looked_up == dict.fromkeys(source.info, 1)


def test_layers_that_are_apart_become_one_of_their_ranks_together(tmp_path: Path) -> None:
    """LoRAs of q, k and v become one LoRA of the fused weight.

    Its rank is the sum of the three ranks, and its up factor is block-diagonal.
    """
    ranks = {"q": 2, "k": 3, "v": 2}
    layers = {
        f"transformer.transformer_blocks.0.attn.to_{x}": {
            **lora((8, 8), rank),
            "alpha": torch.tensor(float(rank) + n),
        }
        for n, (x, rank) in enumerate(ranks.items())
    }
    source = adapter(tmp_path, layers)
    result = lyc.save_adapter(source, tmp_path / "out.safetensors", "kohya", model=FLUX)
    assert "3 layers joined into 1" in lyc.describe_saved(result)
    there = lyc.load_adapter(result.path)
    layer = there.layers["lora_unet_double_blocks_0_img_attn_qkv"]
    # The three scales differ, so each is multiplied into its factor: alpha is then the rank.
    assert layer.rank == 7 and layer.alpha == 7
    assert not layer.dump()["lora_up.weight"][:8, 2:].any(), "block-diagonal"
    assert_same(source, there, FLUX)


def test_one_scale_for_all_is_not_folded_and_one_alone_leaves_the_others_be(tmp_path: Path) -> None:
    """A LoRA of k alone becomes a LoRA of the fused weight that does not change the rows of q and v.

    Its scale stays in alpha, so that the up factor of k is kept bit by bit.
    """
    half = {k: t.half() for k, t in lora((8, 8), 2).items()}
    source = adapter(
        tmp_path, {"transformer.transformer_blocks.0.attn.to_k": {**half, "alpha": torch.tensor(0.3)}}
    )
    there = saved(source, "comfy", FLUX)
    layer = there.layers[QKV]
    up = layer.dump()["lora_up.weight"]
    assert up.dtype == torch.float16 and torch.equal(up[8:16], half["lora_up.weight"])
    assert not up[:8].any() and not up[16:].any() and layer.alpha == pytest.approx(0.3)
    assert_same(source, there, FLUX)


def test_halves_that_diffusers_exchanges_are_exchanged(tmp_path: Path) -> None:
    """In this layer diffusers has the scale before the shift, and the host has the shift before the scale."""
    bias = {"lora_B.bias": rand(16)}
    for made in (lora((16, 8), 2), dora(lora((16, 8), 2), 16), {**lora((16, 8), 2), **bias}):
        source = adapter(tmp_path, {FINAL: made})
        there = saved(source, "diffusers", FLUX)
        assert list(there.info) == ["transformer.norm_out.linear"]
        ours = made["lora_up.weight"]
        theirs = there.layers["transformer.norm_out.linear"].dump()["lora_up.weight"]
        assert torch.equal(theirs, torch.cat([ours[8:], ours[:8]]))
        assert_same(source, saved(there, "comfy", FLUX, "back"), FLUX)


@pytest.mark.parametrize(
    "made",
    [
        loha((24, 8), 2),
        dora(loha((24, 8), 2), 24),
        {"lokr_w1": rand(3, 2), "lokr_w2": rand(8, 4)},
        {"lokr_w1_a": rand(6, 2), "lokr_w1_b": rand(2, 2), "lokr_w2": rand(4, 4)},
        {"diff": rand(24, 8), "diff_b": rand(24)},
        {"set_weight": rand(24, 8)},
        {"oft_blocks": rand(6, 4, 4), "rescale": 1 + rand(24, 1)},
        {"oft_R.weight": rand(2, 6)},
        {"ia3_l": 1 + rand(1, 8)},
        factors("glora", "linear")
        | {
            "a1.weight": rand(8, 2),
            "a2.weight": rand(2, 8),
            "b1.weight": rand(24, 2),
            "b2.weight": rand(2, 8),
        },
        dora(lora((24, 8), 2), 24),
    ],
    ids=lambda made: "-".join(sorted(made))[:40],
)
def test_kinds_that_can_be_cut_are(tmp_path: Path, made: Factors) -> None:
    """Each kind is split into layers of q, k and v with the same effect."""
    source = adapter(tmp_path, {QKV: made})
    there = saved(source, "lycoris", FLUX)
    assert set(there.info) == {f"lycoris_transformer_blocks_0_attn_to_{x}" for x in "qkv"}
    assert_same(source, there, FLUX)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"lokr_w1": rand(2, 2), "lokr_w2": rand(12, 4)}, "lokr layer cut at these rows"),
        ({**lora((24, 8), 2), "dora_scale": 1 + torch.rand(1, 8)}, "lora layer"),
        ({"oft_blocks": rand(2, 12, 12)}, "oft layer"),
        ({"oft_blocks": rand(1, 12, 2, 2)}, "boft layer"),
    ],
    ids=("lokr", "dora-in", "oft", "boft"),
)
def test_kinds_that_cannot_be_cut_say_who_holds_them_whole(tmp_path: Path, made: Factors, why: str) -> None:
    source = adapter(tmp_path, {QKV: made})
    with pytest.raises(
        lyc.LayerError, match=rf"img_attn\.qkv: lycoris fuses or splits.*{why}.*kohya or comfy"
    ):
        saved(source, "lycoris", FLUX)


def test_kinds_that_cannot_be_joined_say_who_holds_them_apart(tmp_path: Path) -> None:
    layers = {
        f"lycoris_transformer_blocks_0_attn_to_{x}": lokr((8, 8), 1, first="full", second="low")
        for x in "qkv"
    }
    with pytest.raises(
        lyc.LayerError, match=r"to_q: kohya fuses or splits.*lokr.*full, loha or lora.*as peft"
    ):
        saved(adapter(tmp_path, layers), "kohya", FLUX)
    mixed = {f"transformer.transformer_blocks.0.attn.to_{x}": lora((8, 8), 2) for x in "qk"}
    mixed["transformer.transformer_blocks.0.attn.to_v"] = dora(lora((8, 8), 2), 8)
    with pytest.raises(lyc.LayerError, match=r"kohya fuses or splits.*DoRA magnitude.*as lycoris"):
        saved(adapter(tmp_path, mixed), "kohya", FLUX)


def adalora() -> Factors:
    return {"lora_A": rand(2, 8), "lora_B": rand(8, 2), "lora_E": rand(2, 1)}


def test_full_differences_and_magnitudes_are_joined(tmp_path: Path) -> None:
    names = {x: f"transformer.transformer_blocks.0.attn.to_{x}" for x in "qkv"}
    for layers in (
        {names[x]: dora(lora((8, 8), 2), 8) for x in "qkv"},
        # Of q, k and v one is missing: its rows are not changed.
        {names[x]: {"diff": rand(8, 8), "diff_b": rand(8)} for x in "qv"},
        {names[x]: {**lora((8, 8), 2), "lora_B.bias": rand(8)} for x in "qk"},
        # AdaLoRA has values between its factors. The layer of v is a LoRA without them.
        {names[x]: {**adalora(), "alpha": torch.tensor(3.0)} for x in "qk"} | {names["v"]: lora((8, 8), 2)},
    ):
        source = adapter(tmp_path, layers)
        there = saved(source, "comfy", FLUX)
        assert list(there.info) == [QKV]
        assert_same(source, there, FLUX)
    # Computed as the host does it: which way is no part of the file, and is not to be lost meanwhile.
    adapter(tmp_path, {names[x]: dora(lora((8, 8), 2), 8) for x in "qkv"})
    source = lyc.load_adapter(tmp_path / "source.safetensors", dora="host")
    assert_same(source, lyc.load_adapter(saved(source, "comfy", FLUX).path, dora="host"), FLUX)


@pytest.mark.parametrize("alphas", [(2.0, 2.0, 3.0), (1.0, 2.0, 3.7)], ids=["one-scale", "three-scales"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_split_loha_layers_are_joined_without_loss(
    tmp_path: Path, alphas: tuple[float, ...], dtype: torch.dtype
) -> None:
    """The joined layer's formula, in float64, gives the changes of the three layers one below the other."""
    made = [{k: t.to(dtype) for k, t in loha((8, 8), rank).items()} for rank in (2, 2, 3)]
    # Query and key share their right factors, as layers do that were cut from one.
    made[1] |= {key: made[0][key].clone() for key in ("hada_w1_b", "hada_w2_b")}
    layers = {
        f"lycoris_transformer_blocks_0_attn_to_{x}": {**part, "alpha": torch.tensor(alpha)}
        for x, part, alpha in zip("qkv", made, alphas, strict=True)
    }

    def change(factors: Mapping[str, Tensor], alpha: float) -> Tensor:
        first = factors["hada_w1_a"].double() @ factors["hada_w1_b"].double()
        second = factors["hada_w2_a"].double() @ factors["hada_w2_b"].double()
        return alpha / factors["hada_w1_b"].shape[0] * first * second

    source = adapter(tmp_path, layers)
    there = saved(source, "comfy", FLUX)
    assert list(there.info) == [QKV]
    layer = there.layers[QKV].dump()
    wanted = torch.cat([change(part, float(torch.tensor(a))) for part, a in zip(made, alphas, strict=True)])
    # Scales that differ are multiplied into a factor, which is then in float32 at least.
    tolerance = 1e-12 if alphas == (2.0, 2.0, 3.0) else 1e-6
    found = change(layer, float(layer["alpha"]))
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert there.info[QKV].rank == 5
    assert_same(source, there, FLUX)
    # Cut again, each part has the change that it had.
    assert_same(source, saved(there, "lycoris", FLUX, "again"), FLUX)


def test_without_shapes_only_whole_layers_have_a_name(tmp_path: Path) -> None:
    """The names of a model's layers alone do not tell which rows of a fused weight are q, k and v."""
    names = list(FLUX)
    whole = adapter(tmp_path, {"lora_unet_double_blocks_0_img_attn_proj": lora((8, 8), 2)})
    path = tmp_path / "out.safetensors"
    lyc.save_adapter(whole, path, "diffusers", model=names)
    assert list(lyc.load_adapter(path).info) == ["transformer.transformer_blocks.0.attn.to_out.0"]
    with pytest.raises(lyc.MatchError, match=r"img_attn_qkv"):
        lyc.save_adapter(
            adapter(tmp_path, {"lora_unet_double_blocks_0_img_attn_qkv": lora((24, 8), 2)}),
            path,
            "diffusers",
            model=names,
        )


def test_a_layer_of_other_rows_is_checked_against_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The written file is read back and compared, which finds a fault in splitting layers."""
    kind = lyc.ALGORITHMS["lora"]
    # With this fault a layer gives its second part in place of the first.
    honest = kind.rows
    monkeypatch.setattr(
        kind, "rows", lambda layer, *ranges: honest(layer, *[(a, b) if a else (b, 2 * b) for a, b in ranges])
    )
    with pytest.raises(lyc.WriteError, match="an internal check failed"):
        saved(adapter(tmp_path, {QKV: lora((24, 8), 2)}), "diffusers", FLUX)
    assert not (tmp_path / "out.safetensors").exists()


def test_parts_that_kohya_numbers_keep_their_suffix(tmp_path: Path) -> None:
    tensors = {"lora_unet_x_qkv.alpha": torch.tensor(0.01)}
    tensors |= {f"lora_unet_x_qkv.oft_blocks.{n}": rand(2, 4, 4) for n in range(3)}
    source = read(tmp_path, tensors, "source")
    there = saved(source, "kohya")
    assert {key for key in there.file.tensors if "oft" in key} == set(tensors) - {"lora_unet_x_qkv.alpha"}
    assert set(there.info) == set(source.info)


def test_lokr_is_cut_as_peft_cuts_it_or_an_error(tmp_path: Path) -> None:
    """In PEFT one option decides, for all layers of a file, into which factors their sizes are split.

    No value of the option makes both layers of `odd`.
    """
    fits = {"unet.a": lokr((12, 18), 1, first="full", second="low")}
    odd = {
        "unet.b": {"lokr_w1": rand(4, 3), "lokr_w2": rand(3, 6)},
        "unet.c": {"lokr_w1": rand(2, 2), "lokr_w2": rand(6, 9)},
    }
    assert list(saved(adapter(tmp_path, fits), "peft").info) == ["base_model.model.a"]
    with pytest.raises(lyc.LayerError, match=r"peft has no options \(decompose_factor.*lycoris"):
        saved(adapter(tmp_path, odd), "peft")
