"""Resolving: which layer changes which weight, what is left over, and what must be an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import process_time

import pytest
import torch
from layers import factors, lora
from written import adapter as adapter_of
from written import read

import lycoris_ops as lyc
from lycoris_ops.names.blocks import Blocks
from lycoris_ops.names.layer_name import LayerName
from lycoris_ops.names.relation import LookedUp, Relation
from lycoris_ops.stack.resolve import EntryResolution

# Some weights of an SD1.5 model, by their keys in the loaded model.
HOST = {
    "diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
    "diffusion_model.input_blocks.1.0.in_layers.2.weight": (8, 8, 3, 3),
    "diffusion_model.input_blocks.1.1.proj_in.weight": (8, 8, 1, 1),
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (8, 8),
    "diffusion_model.input_blocks.2.0.op.weight": (8, 8, 3, 3),
    "diffusion_model.middle_block.0.in_layers.2.weight": (8, 8, 3, 3),
    "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (8, 8),
    "diffusion_model.input_blocks.1.1.norm.weight": (8,),
}
# kohya's names for all but the last of them, in the same order.
LAYERS = {
    "lora_unet_conv_in": (8, 4, 3, 3),
    "lora_unet_down_blocks_0_resnets_0_conv1": (8, 8, 3, 3),
    "lora_unet_down_blocks_0_attentions_0_proj_in": (8, 8, 1, 1),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (8, 8),
    "lora_unet_down_blocks_0_downsamplers_0_conv": (8, 8, 3, 3),
    "lora_unet_mid_block_resnets_0_conv1": (8, 8, 3, 3),
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (8, 8),
}


def adapter(folder: Path, layers: dict[str, tuple[int, ...]], name: str = "x") -> lyc.Adapter:
    """An adapter from a file, with a LoRA for each of these layers."""
    return adapter_of(folder, {layer: lora(shape, 2) for layer, shape in layers.items()}, name)


def resolved(
    path: Path, layers: dict[str, tuple[int, ...]], keys: dict[str, tuple[int, ...]], **entry: object
) -> EntryResolution:
    """An adapter with these layers, resolved against a model with these keys."""
    stack = lyc.Stack([lyc.Entry(adapter(path, layers), **entry)])  # type: ignore[arg-type]
    return lyc.resolve(stack, keys).entries[0]


def test_every_layer_finds_its_weight(tmp_path: Path) -> None:
    found = resolved(tmp_path, LAYERS, HOST)
    wanted = dict(zip(LAYERS, HOST, strict=False))
    assert {match.layer: match.target.key for match in found.matches} == wanted
    assert not found.unmatched and not found.mismatches and not found.absent


def test_the_strength_is_of_the_part_times_the_rules(tmp_path: Path) -> None:
    rules = lyc.Rules.parse("in.1 = 0.5\nte = 2\nin.77 = 0")
    found = resolved(tmp_path, LAYERS, HOST, strength=0.8, strength_clip=0.3, rules=rules)
    strengths = {match.target.name: match.strength for match in found.matches}
    assert strengths["diffusion_model.input_blocks.0.0"] == 0.8
    assert strengths["diffusion_model.input_blocks.1.1.proj_in"] == 0.4
    assert strengths["clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"] == 0.6
    assert [idle.partition(":")[0] for idle in found.idle_rules] == ["in.77"]


def test_what_meets_nothing_is_named_with_the_nearest(tmp_path: Path) -> None:
    layers = {**LAYERS, "lora_unet_down_blocks_0_attentions_0_proj_on": (8, 8)}
    read = adapter(tmp_path, layers)
    # Unreadable layers get no nearest name, and do not count among the few layers that get one.
    damaged = replace(read, unreadable={f"damaged_{n}": "up without down" for n in range(9)})
    (*_, last) = lyc.resolve(lyc.Stack([lyc.Entry(damaged)]), HOST).entries[0].unmatched
    found = lyc.resolve(lyc.Stack([lyc.Entry(read)]), HOST).entries[0]
    (left,) = found.unmatched
    assert last == left
    assert left.layer == "lora_unet_down_blocks_0_attentions_0_proj_on"
    assert left.nearest == "diffusion_model.input_blocks.1.1.proj_in"
    resolution = lyc.Resolution((found,))
    resolution.check()
    with pytest.raises(lyc.MatchError, match=r"1 of 8 layers.*strict"):
        resolution.check(strict=True)
    text = lyc.describe(resolution)
    assert "applied 7 of 8 layers" in text and left.layer in text and left.nearest in text


def test_a_text_encoder_that_is_not_there_is_reported_as_just_that(tmp_path: Path) -> None:
    unet_only = {key: shape for key, shape in HOST.items() if key.startswith("diffusion_model")}
    stack = lyc.Stack([lyc.Entry(adapter(tmp_path, LAYERS))])
    resolution = lyc.resolve(stack, unet_only, absent_because="no CLIP is connected")
    resolution.check(strict=True)
    assert resolution.entries[0].absent == {"te": ("lora_te_text_model_encoder_layers_0_mlp_fc1",)}
    text = lyc.describe(resolution)
    assert "1 layer left out, it belongs to the text encoder: no CLIP is connected" in text


def test_an_adapter_of_absent_layers_alone_is_an_error(tmp_path: Path) -> None:
    te_only = {name: shape for name, shape in LAYERS.items() if name.startswith("lora_te_")}
    unet_only = {key: shape for key, shape in HOST.items() if key.startswith("diffusion_model")}
    stack = lyc.Stack([lyc.Entry(adapter(tmp_path, te_only))])
    with pytest.raises(lyc.MatchError, match="text encoder, and no CLIP is connected"):
        lyc.resolve(stack, unet_only, absent_because="no CLIP is connected").check()


def test_an_adapter_of_another_architecture_is_an_error(tmp_path: Path) -> None:
    layers = {f"lora_unet_double_blocks_{n}_img_attn_proj": (8, 8) for n in range(9)}
    stack = lyc.Stack([lyc.Entry(adapter(tmp_path, layers, "flux"))])
    resolution = lyc.resolve(stack, HOST)
    with pytest.raises(
        lyc.MatchError,
        match=r"flux\.safetensors.*made for Flux 1, .*; this model is SD 1\.5, .*9 layers, none of them",
    ):
        resolution.check()
    # An adapter that is switched off need not match anything.
    off = lyc.Stack([lyc.Entry(stack.entries[0].adapter, strength=0.0, strength_clip=0.0)])
    lyc.resolve(off, HOST).check(strict=True)


def test_one_wrong_shape_is_an_error_that_a_rule_can_silence(tmp_path: Path) -> None:
    layers = {**LAYERS, "lora_unet_conv_in": (8, 9, 3, 3)}
    stack = lyc.Stack([lyc.Entry(adapter(tmp_path, layers))])
    with pytest.raises(lyc.MatchError) as caught:
        lyc.resolve(stack, HOST).check()
    message = str(caught.value)
    for part in ("x.safetensors", "lora_unet_conv_in", "[8, 9, 3, 3]", "[8, 4, 3, 3]"):
        assert part in message
    # The message shows, between backticks, the rule that leaves the layer out.
    rule = message.split("`")[1]
    resolution = lyc.resolve(stack.with_rules(lyc.Rules.parse(rule)), HOST)
    resolution.check(strict=True)
    assert "[8, 9, 3, 3] on diffusion_model.input_blocks.0.0 [8, 4, 3, 3]" in lyc.describe(resolution)
    assert len(resolution.pairs()) == 6


OPEN_CLIP = {
    "transformer.resblocks.0.attn.in_proj_weight": (30, 10),
    "transformer.resblocks.0.attn.in_proj_bias": (30,),
    "transformer.resblocks.0.attn.out_proj.weight": (10, 10),
    "transformer.resblocks.0.mlp.c_fc.weight": (40, 10),
    "transformer.resblocks.0.mlp.c_proj.weight": (10, 40),
}
"""A layer of a text encoder in OpenCLIP's layout, where query, key and value are one weight."""
TEXT_LAYERS = {
    "self_attn_q_proj": (10, 10),
    "self_attn_k_proj": (10, 10),
    "self_attn_v_proj": (10, 10),
    "self_attn_out_proj": (10, 10),
    "mlp_fc1": (40, 10),
    "mlp_fc2": (10, 40),
}
"""The names of its parts in adapters, where query, key and value are separate."""


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        ("conditioner.embedders.1.model.", "lora_te2_"),
        ("conditioner.embedders.0.model.", "lora_te_"),
        ("cond_stage_model.model.", "lora_te_"),
    ],
    ids=["sdxl", "refiner", "sd2"],
)
def test_a_checkpoints_fused_text_encoder_takes_split_layers(
    tmp_path: Path, wrapper: str, prefix: str
) -> None:
    keys = {f"{wrapper}{key}": shape for key, shape in OPEN_CLIP.items()}
    layers = {f"{prefix}text_model_encoder_layers_0_{name}": shape for name, shape in TEXT_LAYERS.items()}
    found = resolved(tmp_path, layers, keys)
    rows = {match.layer.rpartition("layers_0_")[2]: match.target.rows for match in found.matches}
    assert rows == {
        "self_attn_q_proj": (0, 10),
        "self_attn_k_proj": (10, 20),
        "self_attn_v_proj": (20, 30),
        "self_attn_out_proj": None,
        "mlp_fc1": None,
        "mlp_fc2": None,
    }
    assert all(match.target.name.startswith("clip_") for match in found.matches)


@pytest.mark.parametrize(
    ("keys", "mine", "others"),
    [
        ({"text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768)}, "lora_te1_", "lora_te2_"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": (5120, 1280)}, "lora_te2_", "lora_te1_"),
    ],
    ids=["clip_l", "clip_g"],
)
def test_a_text_encoders_own_file_takes_its_own_layers(
    tmp_path: Path, keys: dict[str, tuple[int, ...]], mine: str, others: str
) -> None:
    """Only the width of the weights tells which text encoder the file holds."""
    (shape,) = keys.values()
    name = "text_model_encoder_layers_0_mlp_fc1"
    found = resolved(tmp_path, {f"{mine}{name}": shape, f"{others}{name}": (8, 8)}, keys)
    assert [match.layer for match in found.matches] == [f"{mine}{name}"]
    assert found.absent == {"te": (f"{others}{name}",)} and not found.unmatched


@pytest.mark.parametrize("wrapper", ["", "net.", "model.model.", "model.diffusion_model."])
def test_a_rule_means_the_same_for_a_loaded_model_and_for_every_file(tmp_path: Path, wrapper: str) -> None:
    live = {"diffusion_model.double_blocks.0.img_attn.proj.weight": (8, 8)}
    file = {key.replace("diffusion_model.", wrapper): shape for key, shape in live.items()}
    layers = {"lora_unet_double_blocks_0_img_attn_proj": (8, 8)}
    for text in ("diffusion_model.double_blocks.0.* = 0.25", "double_blocks.* = 0.25", "double.0 = 0.25"):
        for keys in (live, file):
            found = resolved(tmp_path, layers, keys, rules=lyc.Rules.parse(text))
            assert [match.strength for match in found.matches] == [0.25], (text, keys)


def test_an_adapter_for_the_other_part_is_left_out_where_the_stack_has_work(tmp_path: Path) -> None:
    te = {name: shape for name, shape in LAYERS.items() if name.startswith("lora_te_")}
    unet = {name: shape for name, shape in LAYERS.items() if name.startswith("lora_unet_")}
    keys = {key: shape for key, shape in HOST.items() if key.startswith("diffusion_model")}
    stack = lyc.Stack([lyc.Entry(adapter(tmp_path, te, "te")), lyc.Entry(adapter(tmp_path, unet, "unet"))])
    resolution = lyc.resolve(stack, keys)
    resolution.check(strict=True)
    assert "1 layer left out" in lyc.describe(resolution)


def test_a_name_with_two_candidates_is_an_error_naming_both(tmp_path: Path) -> None:
    keys = {"a.b_c.weight": (8, 8), "a_b.c.weight": (8, 8)}
    with pytest.raises(lyc.MatchError) as caught:
        resolved(tmp_path, {"lycoris_a_b_c": (8, 8)}, keys)
    assert all(key in str(caught.value) for key in keys)


@pytest.mark.parametrize("other", ["", "diffusion_model."])
def test_another_tools_name_for_weights_that_a_file_holds_twice_is_an_error(
    tmp_path: Path, other: str
) -> None:
    """As the model's own names are. Else the order of the file's keys would say which weight changes."""
    first = {f"model.{key}": shape for key, shape in HOST.items() if key.startswith("diffusion_model.")}
    second = {key.replace("model.diffusion_model.", other): shape for key, shape in first.items()}
    for keys in (first | second, second | first):
        with pytest.raises(lyc.MatchError) as caught:
            resolved(tmp_path, {"lora_unet_conv_in": (8, 4, 3, 3)}, keys)
        assert next(iter(first)) in str(caught.value) and next(iter(second)) in str(caught.value)


COUNT = 8000
ENCODERS = {f"e{n}.transformer.w.weight": (8, 8) for n in range(COUNT)}
FAMILIES = {f"diffusion_model.f{n}.0.w.weight": (8, 8) for n in range(COUNT)}
OF_ENCODERS = [LayerName.of(f"lora_te2_w{n}") for n in range(COUNT)]


@pytest.mark.parametrize(
    "work",
    [
        lambda: LookedUp.of(OF_ENCODERS, Relation(ENCODERS)).targets("x"),
        lambda: Relation(ENCODERS).written("kohya"),
        lambda: Blocks(Relation(FAMILIES).targets).vocabulary,
    ],
    ids=["names", "written names", "blocks"],
)
def test_thousands_of_parts_of_a_model_take_no_square_of_the_time(work: Callable[[], object]) -> None:
    """A comparison of each part with each other one takes 5 seconds or more, other work a tenth of that."""
    began = process_time()
    work()
    assert process_time() - began < 2


def test_names_alone_are_matched_without_shapes(tmp_path: Path) -> None:
    stack = lyc.Stack([lyc.Entry(adapter(tmp_path, LAYERS))])
    assert len(lyc.resolve(stack, list(HOST)).pairs()) == len(LAYERS)


def test_a_plain_module_is_a_target_like_any_other(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Sequential(torch.nn.Linear(8, 6)))
    keys = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    found = resolved(tmp_path, {"base_model.model.1.0": (6, 8), "lycoris_0": (8, 8)}, keys)
    assert {match.target.key for match in found.matches} == {"1.0.weight", "0.weight"}


def test_order_and_zero_strengths_leave_no_trace(tmp_path: Path) -> None:
    one, two = (adapter(tmp_path, LAYERS, name) for name in ("one", "two"))
    entries = [lyc.Entry(one, 0.5), lyc.Entry(two, -1.0), lyc.Entry(two, 0.0)]
    forward = lyc.resolve(lyc.Stack(entries), HOST).pairs()
    backward = lyc.resolve(lyc.Stack(reversed(entries)), HOST).pairs()
    assert forward and forward == backward
    assert all(len(pairs) == 2 for pairs in forward.values())


def test_the_report_tells_kinds_ranks_alphas_and_stays_short(tmp_path: Path) -> None:
    tensors = {f"lora_unet_conv_in.{key}": tensor for key, tensor in lora((8, 4, 3, 3), 2).items()} | {
        f"lora_unet_nowhere_{n}.{key}": t for n in range(500) for key, t in factors("loha", "linear").items()
    }
    tensors["odd.key"] = torch.zeros(1)
    stack = lyc.Stack([lyc.Entry(read(tmp_path, tensors, "mixed"), 0.7)])
    text = lyc.describe(lyc.resolve(stack, HOST))
    for part in (
        "mixed.safetensors",
        "names of kohya",
        "500 loha (rank 3; alpha 2)",
        "1 lora (rank 2; alpha none)",
        "strength 0.7",
        "applied 1 of 501 layers",
        "500 layers cannot be matched",
        "and 492 more",
        "odd.key",
    ):
        assert part in text
    assert len(text.splitlines()) < 25
