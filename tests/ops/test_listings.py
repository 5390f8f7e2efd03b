"""Listings of real adapter files: every key is used or reported, and every layer finds its weight.

A listing has the keys and the shapes of a file, but no values.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import cache
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch

import lycoris_ops as lyc
from lycoris_ops.names.blocks import Blocks
from lycoris_ops.names.targets import Targets
from lycoris_ops.rules.patterns import Pattern
from lycoris_ops.rules.scene import Scene
from lycoris_ops.stack.resolve import EntryResolution, families
from tests.harness.listings import Listing, listings, target, thin, write_hollow, write_random

NAMELESS = "cascade_stability_positional"
"""A file that numbers its layers and does not say which layers of the model they are."""
LISTINGS = {name: listing for name, listing in listings().items() if name != NAMELESS}
BUNDLED = "bundle_emb."
"""The beginning of the keys of an embedding that comes with an adapter. The embedding's name follows."""
STRAY = {"sdxl_onetrainer_bundle": r"_aux\.", "wan21_i2v_lightx2v": r".*\.blocks\.\d+\.diff_m$"}
"""Keys of no layer, which are reported: a slider tool's notes, and the change of `blocks.N.modulation`,
a parameter that no other file changes and the host leaves out too."""

Rows = tuple[int, int] | None
EXPECTED: dict[str, dict[str, tuple[str, Rows]]] = {
    "flux_diffusers": {
        "transformer.transformer_blocks.7.attn.to_k": ("double_blocks.7.img_attn.qkv", (3072, 6144)),
        "transformer.transformer_blocks.7.attn.add_v_proj": ("double_blocks.7.txt_attn.qkv", (6144, 9216)),
        "transformer.transformer_blocks.7.ff_context.net.2": ("double_blocks.7.txt_mlp.2", None),
        "transformer.transformer_blocks.7.norm1_context.linear": ("double_blocks.7.txt_mod.lin", None),
        "transformer.single_transformer_blocks.37.proj_mlp": ("single_blocks.37.linear1", (9216, 21504)),
        "transformer.single_transformer_blocks.37.attn.to_q": ("single_blocks.37.linear1", (0, 3072)),
        "transformer.single_transformer_blocks.37.proj_out": ("single_blocks.37.linear2", None),
    },
    "flux_onetrainer_dora": {
        "lora_transformer_transformer_blocks_0_attn_to_add_out": ("double_blocks.0.txt_attn.proj", None),
        "lora_transformer_single_transformer_blocks_9_attn_to_v": ("single_blocks.9.linear1", (6144, 9216)),
    },
    "flux_xlabs": {
        "double_blocks.3.processor.proj_lora1": ("double_blocks.3.img_attn.proj", None),
        "double_blocks.3.processor.qkv_lora2": ("double_blocks.3.txt_attn.qkv", None),
    },
    "flux_xlabs_single": {
        "single_blocks.3.processor.qkv_lora": ("single_blocks.3.linear1", (0, 9216)),
        "single_blocks.3.processor.proj_lora": ("single_blocks.3.linear2", None),
    },
    "flux_trailing_underscore": {
        "lora_unet_context_embedder_": ("txt_in", None),
        "lora_unet_proj_out_": ("final_layer.linear", None),
    },
    "flux2_diffusers_dora": {
        "transformer.single_transformer_blocks.10.attn.to_qkv_mlp_proj": ("single_blocks.10.linear1", None),
        "transformer.single_transformer_blocks.10.attn.to_out": ("single_blocks.10.linear2", None),
    },
    "wan21_lycoris_lokr": {
        "lycoris_blocks_2_attn2_to_out_0": ("blocks.2.cross_attn.o", None),
        "lycoris_blocks_2_ffn_net_0_proj": ("blocks.2.ffn.0", None),
    },
    "wan21_i2v_k_dot_img": {
        "diffusion_model.blocks.25.cross_attn.k.img": ("blocks.25.cross_attn.k_img", None),
    },
    "hunyuan_video_musubi": {
        "lora_unet_double_blocks_3_txt_mlp_fc2": ("double_blocks.3.txt_mlp.2", None),
        "lora_unet_double_blocks_3_img_attn_qkv": ("double_blocks.3.img_attn.qkv", None),
    },
    "z_image_aitoolkit": {
        "diffusion_model.layers.25.attention.to_v": ("layers.25.attention.qkv", (7680, 11520)),
        "diffusion_model.layers.25.attention.to_out.0": ("layers.25.attention.out", None),
    },
    "lumina2_diffusers": {
        "transformer.layers.17.attn.to_k": ("layers.17.attention.qkv", (2304, 3072)),
        "transformer.layers.16.attn.to_v": ("layers.16.attention.qkv", (3072, 3840)),
        "transformer.layers.16.feed_forward.linear_2": ("layers.16.feed_forward.w2", None),
        "transformer.layers.16.norm1.linear": ("layers.16.adaLN_modulation.1", None),
    },
    "sd3_onetrainer": {
        "lora_transformer_transformer_blocks_13_attn_add_v_proj": (
            "joint_blocks.13.context_block.attn.qkv",
            (3072, 4608),
        ),
        "lora_transformer_transformer_blocks_13_attn_to_out_0": ("joint_blocks.13.x_block.attn.proj", None),
    },
    "sd35_medium_lycoris_lokr": {
        "lycoris_transformer_blocks_4_attn2_to_k": ("joint_blocks.4.x_block.attn2.qkv", (1536, 3072)),
    },
    "omnigen2_peft_default": {
        "layers.17.attn.to_out.0": ("layers.17.attn.to_out.0", None),
    },
    "pixart_sigma_onetrainer": {
        "lora_transformer_transformer_blocks_14_attn1_to_v": ("blocks.14.attn.qkv", (2304, 3456)),
        "lora_transformer_transformer_blocks_14_attn2_to_k": ("blocks.14.cross_attn.kv_linear", (0, 1152)),
        "lora_transformer_transformer_blocks_14_attn2_to_q": ("blocks.14.cross_attn.q_linear", None),
    },
    "cascade_onetrainer_te": {
        "lora_prior_te_text_model_encoder_layers_0_mlp_fc1": ("text_model.encoder.layers.0.mlp.fc1", None),
    },
    "auraflow_simpletuner": {
        "transformer.single_transformer_blocks.20.attn.to_k": ("single_layers.20.attn.w1k", None),
    },
    "ace_step15_lycoris_dokr": {
        "lycoris_time_embed_time_proj": ("decoder.time_embed.time_proj", None),
    },
    "sdxl_lcm": {
        "lora_unet_down_blocks_0_downsamplers_0_conv": ("input_blocks.3.0.op", None),
        "lora_unet_down_blocks_0_resnets_1_time_emb_proj": ("input_blocks.2.0.emb_layers.1", None),
    },
    "sdxl_diffusers_processor": {
        "unet.down_blocks.2.attentions.0.transformer_blocks.2.attn2.to_k": (
            "input_blocks.7.1.transformer_blocks.2.attn2.to_k",
            None,
        ),
    },
}
"""Where some layers belong, by diffusers' conversions (Apache-2.0): the path in the model and the rows,
with None for all rows."""


def opened(listing: Listing, folder: Path) -> lyc.Adapter:
    """The adapter from a file with all keys of the listing and zeros for values."""
    return lyc.load_adapter(write_hollow(listing, folder / f"{listing.name}.safetensors"))


def resolved(listing: Listing, folder: Path) -> EntryResolution:
    """The adapter of a listing, resolved against the model that it is for."""
    stack = lyc.Stack([lyc.Entry(opened(listing, folder))])
    return lyc.resolve(stack, target(listing.architecture)).entries[0]


@pytest.mark.parametrize("name", LISTINGS)
def test_every_key_is_of_a_layer_or_reported(name: str, tmp_path: Path) -> None:
    adapter = opened(LISTINGS[name], tmp_path)
    # A set: kohya's OFT of a fused layer has one alpha for all its parts.
    used = {key for info in adapter.info.values() for key in info.keys.values()}
    bundled = [key for key in LISTINGS[name].keys if key.startswith(BUNDLED)]
    assert sorted([*used, *adapter.unused_keys, *bundled]) == sorted(LISTINGS[name].keys)
    assert set(adapter.embeddings) == {key.split(".")[1] for key in bundled}
    assert not adapter.unreadable
    stray = STRAY.get(name)
    assert not [key for key in adapter.unused_keys if not (stray and re.match(stray, key))]


@cache
def blocks_of(architecture: str) -> Blocks:
    return Blocks(Targets(target(architecture)))


@pytest.mark.parametrize("architecture", sorted({listing.architecture for listing in LISTINGS.values()}))
def test_blocks_share_out_the_layers_of_a_model_and_rules_know_them_by_name(architecture: str) -> None:
    blocks = blocks_of(architecture)
    assert Counter(blocks.layers) == Counter(chain.from_iterable(blocks.members.values()))
    scene = Scene(blocks, {})
    for name, members in blocks.members.items():
        pattern = Pattern.of(name)
        assert [one for one in blocks.layers if pattern.matches(scene, one)] == members, name


@pytest.mark.parametrize("name", LISTINGS)
def test_every_layer_finds_its_weight(name: str, tmp_path: Path) -> None:
    found = resolved(LISTINGS[name], tmp_path)
    assert not found.mismatches
    assert not found.absent
    assert not found.unmatched
    assert {match.layer for match in found.matches} == set(found.entry.adapter.info)
    # A fused layer too is in one block.
    blocks = blocks_of(LISTINGS[name].architecture)
    places = {(match.layer, blocks.of(match.target).block) for match in found.matches}
    assert len(places) == len(found.entry.adapter.info)


@pytest.mark.parametrize("name", LISTINGS)
def test_no_two_layers_meet_the_same_rows(name: str, tmp_path: Path) -> None:
    met: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    shapes = target(LISTINGS[name].architecture)
    for match in resolved(LISTINGS[name], tmp_path).matches:
        whole = (0, shapes[match.key][0])
        met[match.key, match.parameter].append(match.target.rows or whole)
    assert met
    for ranges in met.values():
        ranges.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(ranges))


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name in EXPECTED for layer in EXPECTED[name]])
def test_the_layer_belongs_there(name: str, layer: str, tmp_path: Path) -> None:
    found = resolved(LISTINGS[name], tmp_path)
    places = {(match.target.path, match.target.rows) for match in found.matches if match.layer == layer}
    assert places == {EXPECTED[name][layer]}


def test_layers_that_are_only_numbered_are_refused(tmp_path: Path) -> None:
    listing = listings()[NAMELESS]
    with pytest.raises(lyc.LycorisError, match=re.escape(f"{NAMELESS}.safetensors")):
        stack = lyc.Stack([lyc.Entry(opened(listing, tmp_path))])
        lyc.resolve(stack, target(listing.architecture)).check()


@pytest.mark.parametrize("name", ["flux_onetrainer_dora", "sdxl_slider", "sd15_loha_tucker"])
def test_thinned_files_are_read_whole(name: str, tmp_path: Path) -> None:
    """The files hold random values for the first two blocks and the last one of each stack.

    Alpha is the rank in each of them.
    """
    listing = thin(LISTINGS[name])
    adapter = lyc.load_adapter(write_random(listing, tmp_path / "x.safetensors"))
    assert adapter.info
    for layer in adapter.layers.values():
        assert layer.alpha == layer.rank
        assert all(torch.isfinite(tensor).all() for tensor in layer.dump().values())


@pytest.mark.parametrize("name", LISTINGS)
def test_a_file_is_never_said_to_be_for_another_family(name: str, tmp_path: Path) -> None:
    """By its names or its metadata a file is for the family of its model, or for none that is known."""
    adapter = opened(LISTINGS[name], tmp_path)
    targets = Targets(target(LISTINGS[name].architecture))
    made_for, model = families(adapter, targets)
    assert not made_for or not model or {*made_for} & {*model}
    if LISTINGS[name].architecture in ("sd15", "sdxl", "flux", "sd3_medium", "qwen_image", "wan21_t2v_14b"):
        assert model
