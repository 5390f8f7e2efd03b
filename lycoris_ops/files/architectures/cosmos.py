"""Cosmos 1, Cosmos-Predict2 and Anima: the original layouts beside the names of diffusers.

Source of the correspondence: diffusers (Apache-2.0), `convert_cosmos_transformer_checkpoint_to_diffusers`
in `loaders/single_file_utils.py`, and for Anima's text conditioner, a model of its own there,
`_convert_non_diffusers_anima_lora_to_diffusers` in `loaders/lora_conversion_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...algebra import Shape
from .base import Places
from .patterns import below, following, gathered, renamed

# A block of Cosmos 1 is three blocks with a modulation each: attention, cross-attention, feed-forward.
ATTENTION_1 = {
    "to_q.0": "to_q",
    "to_q.1": "norm_q",
    "to_k.0": "to_k",
    "to_k.1": "norm_k",
    "to_v.0": "to_v",
    "to_out": "to_out",
}
MODULATION = {"1": "linear_1", "2": "linear_2"}
BLOCK_1 = {
    **below("blocks.0.block.attn", "attn1", ATTENTION_1),
    **below("blocks.0.adaLN_modulation", "norm1", MODULATION),
    **below("blocks.1.block.attn", "attn2", ATTENTION_1),
    **below("blocks.1.adaLN_modulation", "norm2", MODULATION),
    "blocks.2.block.layer1": "ff.net.0.proj",
    "blocks.2.block.layer2": "ff.net.2",
    **below("blocks.2.adaLN_modulation", "norm3", MODULATION),
}
COMMON = {
    "x_embedder.proj.1": "patch_embed.proj",
    "t_embedder.1": "time_embed.t_embedder",
    "final_layer.linear": "proj_out",
}
TABLE_1 = {
    **COMMON,
    "affline_norm": "time_embed.norm",
    "extra_pos_embedder": "learnable_pos_embed",
    **below("final_layer.adaLN_modulation", "norm_out", MODULATION),
    **below("blocks.block*", "transformer_blocks.*", BLOCK_1),
}

ATTENTION_2 = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "output_proj": "to_out.0",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
BLOCK_2 = {
    **below("self_attn", "attn1", ATTENTION_2),
    **below("adaln_modulation_self_attn", "norm1", MODULATION),
    **below("cross_attn", "attn2", ATTENTION_2),
    **below("adaln_modulation_cross_attn", "norm2", MODULATION),
    "mlp.layer1": "ff.net.0.proj",
    "mlp.layer2": "ff.net.2",
    **below("adaln_modulation_mlp", "norm3", MODULATION),
}
TABLE_2 = {
    **COMMON,
    "t_embedding_norm": "time_embed.norm",
    **below("final_layer.adaln_modulation", "norm_out", MODULATION),
    **below("blocks.*", "transformer_blocks.*", BLOCK_2),
    "llm_adapter": "text_conditioner",
}


def diffusers(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """Nothing for another architecture."""
    if {"x_embedder.proj.1", "blocks.block0.blocks.0.block.attn.to_q.0"} <= shapes.keys():
        return gathered(shapes, renamed(shapes, TABLE_1))
    if {"x_embedder.proj.1", "blocks.0.mlp.layer1"} <= shapes.keys():
        return gathered(shapes, renamed(shapes, TABLE_2))
    return {}


aliases = following(diffusers)
