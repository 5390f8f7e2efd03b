"""Block rules: their language, and what they do to the strength of a layer."""

from __future__ import annotations

import pytest

import lycoris_ops as lyc
from lycoris_ops.names.targets import Targets

# One layer of every kind of block that rules know, and one layer beside the blocks.
SHAPES = {
    "diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3),
    "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (4, 4),
    "diffusion_model.middle_block.1.proj_in.weight": (4, 4),
    "diffusion_model.output_blocks.7.0.in_layers.2.weight": (4, 4, 3, 3),
    "diffusion_model.time_embed.0.weight": (4, 4),
    "diffusion_model.double_blocks.3.img_attn.qkv.weight": (4, 4),
    "diffusion_model.single_blocks.12.linear1.weight": (4, 4),
    "diffusion_model.blocks.5.ffn.0.weight": (4, 4),
    "diffusion_model.transformer_blocks.6.attn.to_q.weight": (4, 4),
    "diffusion_model.layers.8.attention.qkv.weight": (4, 4),
    "clip_l.transformer.text_model.encoder.layers.9.mlp.fc1.weight": (4, 4),
    "t5xxl.transformer.encoder.block.2.layer.0.SelfAttention.q.weight": (4, 4),
}
NAMES = {target.path: target.names for target in Targets(SHAPES).all}


@pytest.mark.parametrize(
    ("path", "blocks"),
    [
        ("input_blocks.0.0", {"in", "in.0"}),
        ("input_blocks.4.1.transformer_blocks.0.attn2.to_k", {"in", "in.4"}),
        ("middle_block.1.proj_in", {"mid"}),
        ("output_blocks.7.0.in_layers.2", {"out", "out.7"}),
        ("time_embed.0", {"time_embed"}),
        ("double_blocks.3.img_attn.qkv", {"double", "double.3"}),
        ("single_blocks.12.linear1", {"single", "single.12"}),
        ("blocks.5.ffn.0", {"blocks", "blocks.5"}),
        ("transformer_blocks.6.attn.to_q", {"transformer", "transformer.6"}),
        ("layers.8.attention.qkv", {"layers", "layers.8"}),
        ("text_model.encoder.layers.9.mlp.fc1", {"te", "te.9", "clip_l", "clip_l.9"}),
        ("encoder.block.2.layer.0.SelfAttention.q", {"te", "te.2", "t5xxl", "t5xxl.2"}),
    ],
)
def test_every_layer_has_its_block_names(path: str, blocks: set[str]) -> None:
    full, bare, *found = NAMES[path]
    assert bare == path and set(found) == blocks
    assert f"{full}.weight" in SHAPES


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("", {}),
        ("# nothing\n\n   \n", {}),
        ("in.4 = 0.5", {"input_blocks.4": 0.5}),
        ("in = 0.5", {"input_blocks.0": 0.5, "input_blocks.4": 0.5}),
        ("in.* = 0.5\nin.4 = -2  # stronger", {"input_blocks.0": 0.5, "input_blocks.4": -2.0}),
        ("in.4 = -2\nin.* = 0.5", {"input_blocks.0": 0.5, "input_blocks.4": 0.5}),
        ("*attn2* = 0", {"input_blocks.4": 0.0}),
        ("diffusion_model.middle_block.1.proj_in = 1e-3", {"middle_block": 0.001}),
        ("te = 0.25", {"text_model": 0.25, "encoder": 0.25}),
        ("clip_l = 0.25", {"text_model": 0.25}),
        ("te.[0-4] = 3", {"encoder": 3.0}),
        ("IN.4 = 0", {}),
    ],
)
def test_the_last_rule_that_matches_counts(text: str, weights: dict[str, float]) -> None:
    """`weights` has the expected weight for the beginning of a path. Every other path must have weight 1."""
    rules = lyc.Rules.parse(text)
    for path, names in NAMES.items():
        expected = next((w for start, w in weights.items() if path.startswith(start)), 1.0)
        assert rules.weight(names) == expected, path


def test_rules_one_after_the_other_multiply() -> None:
    first, second = lyc.Rules.parse("in = 0.5\nmid = 0"), lyc.Rules.parse("* = 3")
    assert first.then(second).weight(NAMES["input_blocks.0.0"]) == 1.5
    assert first.then(second).weight(NAMES["middle_block.1.proj_in"]) == 0.0
    assert first.then(None) == first


@pytest.mark.parametrize("line", ["in.4", "= 1", "in.4 =", "in.4 = x", "in.4 = nan", "in.4 = inf", "in.4: 1"])
def test_a_line_that_is_not_understood_is_named(line: str) -> None:
    with pytest.raises(lyc.RuleError, match="line 2") as caught:
        lyc.Rules.parse(f"mid = 1\n{line}")
    assert line in str(caught.value)
