"""Names that no table has: for parts of a fused weight, and for several weights as one.

What such a name means follows from the usual names in an attention and from the shapes of its layers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lycoris_ops as lyc
from lycoris_ops.names import fused_attention
from lycoris_ops.names.architectures import Slice


@pytest.mark.parametrize("fused", ["qkv", "to_qkv", "qkv_proj", "in_proj", "in_proj_weight", "Wqkv"])
@pytest.mark.parametrize("parts", ["q k v", "to_q to_k to_v", "q_proj k_proj v_proj", "wq wk wv"])
def test_parts_of_a_fused_weight(fused: str, parts: str) -> None:
    path = f"encoder.layers.3.attn.{fused}"
    names = fused_attention.fallback({path: (12, 4)})
    thirds = ((0, 4), (4, 8), (8, 12))
    for part, third in zip(parts.split(), thirds, strict=True):
        assert names[f"encoder.layers.3.attn.{part}"] == (Slice(path, third),)


@pytest.mark.parametrize("output", ["out", "proj", "o_proj", "out_proj", "to_out.0", "wo"])
def test_the_projection_after_the_attention_tells_the_rows_of_the_query(output: str) -> None:
    """The projection has a column for every row of the query. Keys and values share the remaining rows."""
    shapes = {"attn.qkv": (20, 7), f"attn.{output}": (7, 12)}
    names = fused_attention.fallback(shapes)
    assert names["attn.q"] == (Slice("attn.qkv", (0, 12)),)
    assert names["attn.k"] == (Slice("attn.qkv", (12, 16)),)
    assert names["attn.v"] == (Slice("attn.qkv", (16, 20)),)


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param({"attn.qkv": ()}, id="unknown"),
        pytest.param({"attn.qkv": (20, 7)}, id="grouped, nothing to tell how"),
        pytest.param({"attn.qkv": (12, 4), "attn.out": (4, 9)}, id="an odd rest"),
        pytest.param({"attn.qkv": (12, 4), "attn.out": (4, 2)}, id="more keys than queries"),
        pytest.param({"attn.qkv": (12, 4), "attn.out": (4, 4), "attn.proj": (4, 6)}, id="two outputs"),
        pytest.param({"attn.qkv": (12, 4), "attn.to_qkv": (12, 4)}, id="two fusions"),
        pytest.param({"attn.query_key_value": (12, 4)}, id="rows mixed by head in some models"),
    ],
)
def test_what_shapes_do_not_decide_has_no_name(shapes: dict[str, tuple[int, ...]]) -> None:
    assert fused_attention.fallback(shapes) == {}


def test_fused_names_of_split_weights() -> None:
    """The model is a text encoder whose keys and values have fewer rows than its queries."""
    shapes = {
        "model.layers.0.self_attn.q_proj": (8, 4),
        "model.layers.0.self_attn.k_proj": (2, 4),
        "model.layers.0.self_attn.v_proj": (2, 4),
        "model.layers.0.self_attn.o_proj": (4, 8),
        "model.layers.0.mlp.gate_proj": (6, 4),
        "model.layers.0.mlp.up_proj": (6, 4),
        "model.layers.0.mlp.down_proj": (4, 6),
    }
    names = fused_attention.fallback(shapes)
    attention = [Slice(f"model.layers.0.self_attn.{part}_proj") for part in "qkv"]
    assert names["model.layers.0.self_attn.qkv_proj"] == tuple(attention)
    assert names["model.layers.0.self_attn.qkv"] == tuple(attention)
    assert names["model.layers.0.self_attn.kv_proj"] == tuple(attention[1:])
    assert names["model.layers.0.mlp.gate_up_proj"] == (
        Slice("model.layers.0.mlp.gate_proj"),
        Slice("model.layers.0.mlp.up_proj"),
    )
    assert not names.keys() & shapes.keys()


def test_keys_of_something_else_than_the_queries_fuse_with_values_only() -> None:
    """In a cross-attention queries have other inputs than keys and values."""
    shapes = {"attn2.to_q": (8, 8), "attn2.to_k": (8, 6), "attn2.to_v": (8, 6)}
    names = fused_attention.fallback(shapes)
    assert names["attn2.to_kv"] == (Slice("attn2.to_k"), Slice("attn2.to_v"))
    assert "attn2.to_qkv" not in names


def test_halves_of_fused_keys_and_values_and_of_a_gated_feed_forward() -> None:
    names = fused_attention.fallback({"attn.to_q": (8, 8), "attn.to_kv": (4, 6), "mlp.gate_up_proj": (12, 8)})
    assert names["attn.to_k"] == (Slice("attn.to_kv", (0, 2)),)
    assert names["attn.to_v"] == (Slice("attn.to_kv", (2, 4)),)
    assert names["mlp.gate_proj"] == (Slice("mlp.gate_up_proj", (0, 6)),)
    assert names["mlp.up_proj"] == (Slice("mlp.gate_up_proj", (6, 12)),)
    assert "attn.to_q" not in names


def test_added_projections_of_a_second_stream_have_their_own_fusion() -> None:
    shapes = dict.fromkeys((f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj")), (4, 4))
    names = fused_attention.fallback(shapes)
    assert names["attn.to_added_qkv"] == tuple(map(Slice, shapes))
    assert names["attn.to_added_kv"] == tuple(map(Slice, list(shapes)[1:]))


def test_the_list_index_of_an_output_may_be_missing() -> None:
    """In diffusers `to_out` is a list of the projection and a dropout. Some tools leave the index out."""
    names = fused_attention.fallback({"attn.to_out.0": (4, 4), "attn1.to_out": (4, 4)})
    assert names["attn.to_out"] == (Slice("attn.to_out.0"),)
    assert names["attn1.to_out.0"] == (Slice("attn1.to_out"),)


@pytest.mark.parametrize("name", ["flux", "unet"])
def test_what_diffusers_fuses_is_adapted_in_place_of_its_parts(name: str) -> None:
    """After `unfuse_qkv_projections` the parts are adapted again."""
    import diffusers

    torch.manual_seed(0)
    if name == "flux":
        made: Any = diffusers.FluxTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        )
        texts = {"pooled_projections": torch.ones(1, 32), "txt_ids": torch.zeros(3, 3)}
        inputs: Any = {
            "hidden_states": torch.ones(1, 4, 4),
            "encoder_hidden_states": torch.ones(1, 3, 32),
            "timestep": torch.ones(1),
            "img_ids": torch.zeros(4, 3),
            "guidance": None,
            **texts,
        }
    else:
        made = diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=4,
        )
        inputs = {
            "sample": torch.ones(1, 4, 8, 8),
            "timestep": 1,
            "encoder_hidden_states": torch.ones(1, 3, 32),
        }
    plain = lyc.create_lycoris(made, preset="attn-only", rank=2).members.keys()
    made.fuse_qkv_projections()
    network = lyc.create_lycoris(made, preset="attn-only", rank=2).apply_to()
    assert any(path.endswith("to_qkv") for path in network.members)
    made(**inputs)[0].square().sum().backward()
    idle = [path for path, one in network.members.items() if next(one.parameters()).grad is None]
    assert not idle and all(one.passed for one in network.members.values())
    with pytest.raises(lyc.LycorisError, match=r"computes with to_(qkv|kv) in its place"):
        lyc.create_lycoris(made, include="*attn*.to_k")
    network.restore()
    made.unfuse_qkv_projections()
    assert lyc.create_lycoris(made, preset="attn-only", rank=2).members.keys() == plain
