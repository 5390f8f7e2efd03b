"""Cosmos 1, Cosmos-Predict2 and Anima: maps diffusers' names to the original layouts.

Source of the correspondence: diffusers (Apache-2.0), `convert_cosmos_transformer_checkpoint_to_diffusers`
in `loaders/single_file_utils.py`. Anima's text conditioner, a model of its own in diffusers, is renamed in
`_convert_non_diffusers_anima_lora_to_diffusers` in `loaders/lora_conversion_utils.py`.
"""

from __future__ import annotations

from .notation import Layout, same, under
from .record import Architecture, Family, Size

ATTENTION_1 = {
    "to_q": "to_q.0",
    "norm_q": "to_q.1",
    "to_k": "to_k.0",
    "norm_k": "to_k.1",
    "to_v": "to_v.0",
    **same("to_out.0"),
}
MODULATION = {"linear_1": "1", "linear_2": "2"}
# A block of Cosmos 1 holds three blocks, each with its own modulation: attention, cross-attention,
# feed-forward.
BLOCK_1 = {
    **under("attn1", "blocks.0.block.attn", ATTENTION_1),
    **under("norm1", "blocks.0.adaLN_modulation", MODULATION),
    **under("attn2", "blocks.1.block.attn", ATTENTION_1),
    **under("norm2", "blocks.1.adaLN_modulation", MODULATION),
    "ff.net.0.proj": "blocks.2.block.layer1",
    "ff.net.2": "blocks.2.block.layer2",
    **under("norm3", "blocks.2.adaLN_modulation", MODULATION),
}
COMMON = {
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
    "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
    "proj_out": "final_layer.linear",
}
COSMOS_1 = {
    **COMMON,
    # Spelled so in the original code.
    "time_embed.norm": "affline_norm",
    "learnable_pos_embed.**": "extra_pos_embedder.**",
    **under("norm_out", "final_layer.adaLN_modulation", MODULATION),
    **under("transformer_blocks.*", "blocks.block*", BLOCK_1),
}

ATTENTION_2 = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out.0": "output_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}
BLOCK_2 = {
    **under("attn1", "self_attn", ATTENTION_2),
    **under("norm1", "adaln_modulation_self_attn", MODULATION),
    **under("attn2", "cross_attn", ATTENTION_2),
    **under("norm2", "adaln_modulation_cross_attn", MODULATION),
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
    **under("norm3", "adaln_modulation_mlp", MODULATION),
}
COSMOS_2 = {
    **COMMON,
    "time_embed.norm": "t_embedding_norm",
    **under("norm_out", "final_layer.adaln_modulation", MODULATION),
    **under("transformer_blocks.*", "blocks.*", BLOCK_2),
}

ATTENTIONS = r"blocks_\d+_(self|cross)_attn_[qkv]_proj"

ARCHITECTURE = Architecture(
    layouts=(
        Layout(
            marks=("x_embedder.proj.1", "blocks.block*.blocks.0.block.attn.to_q.0"),
            diffusers=COSMOS_1,
        ),
        Layout(
            marks=("x_embedder.proj.1", "blocks.*.mlp.layer1"),
            diffusers=COSMOS_2,
            # Only Anima has it.
            others={"text_conditioner.**": "llm_adapter.**"},
        ),
    ),
    tokens={
        # Anima's, which has blocks of the same names.
        "llm_adapter": "text",
        "x_embedder": "places",
        **dict.fromkeys((f"blocks.*.cross_attn.{letter}_proj" for letter in "kv"), "for places"),
        **dict.fromkeys((f"blocks.*.{layer}" for layer in ("self_attn", "cross_attn", "mlp")), "places"),
        "final_layer.linear": "places",
    },
    families=(
        Family("Cosmos", like=ATTENTIONS),
        Family(
            "Anima",
            said=r"anima(?!te)",
            mark=r"llm_adapter_",
            like=ATTENTIONS,
            sizes=(Size({"blocks": 28}, "ANIMA"),),
        ),
    ),
)
