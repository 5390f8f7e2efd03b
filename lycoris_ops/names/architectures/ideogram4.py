"""Ideogram 4: maps diffusers' names to the original layout.

Source of the correspondence: diffusers (Apache-2.0), `_convert_non_diffusers_ideogram4_lora_to_diffusers`
in `loaders/lora_conversion_utils.py`.
"""

from __future__ import annotations

from .notation import Layout, same, split, under
from .record import Architecture

BLOCK = {
    **split("attention.qkv", "attention.to_q", "attention.to_k", "attention.to_v", output="attention.o"),
    "attention.to_out.0": "attention.o",
    **same("attention.norm_q", "attention.norm_k", "adaln_modulation"),
    **same("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    **same("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"),
}
DIFFUSERS = {
    **same("input_proj", "llm_cond_norm", "llm_cond_proj", "embed_image_indicator", "adaln_proj"),
    **same("t_embedding.mlp_in", "t_embedding.mlp_out"),
    **under("layers.*", "layers.*", BLOCK),
    **same("final_layer.linear", "final_layer.adaln_modulation"),
}

ARCHITECTURE = Architecture(
    layouts=(Layout(marks=("embed_image_indicator", "layers.*.attention.qkv"), diffusers=DIFFUSERS),),
    tokens={
        "input_proj": "text, places",
        **dict.fromkeys(
            (f"layers.*.{sublayer}" for sublayer in ("attention", "feed_forward")), "text, places"
        ),
        "final_layer.linear": "text, places",
    },
)
