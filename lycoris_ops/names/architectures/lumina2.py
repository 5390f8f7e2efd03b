"""Lumina 2 and NewBie: maps diffusers' names to the original layout.

Source of the correspondence: diffusers (Apache-2.0), `convert_lumina2_to_diffusers` in
`loaders/single_file_utils.py`. That conversion knows one size of the model; here the rows of query, key and
value come from the shapes.
"""

from __future__ import annotations

from .notation import SEQUENCE, Layout, same, split, under
from .record import Architecture, Family, Size

BLOCK = {
    **split("attention.qkv", "attn.to_q", "attn.to_k", "attn.to_v", output="attention.out"),
    "attn.to_out.0": "attention.out",
    "attn.norm_q": "attention.q_norm",
    "attn.norm_k": "attention.k_norm",
    "feed_forward.linear_1": "feed_forward.w1",
    "feed_forward.linear_2": "feed_forward.w2",
    "feed_forward.linear_3": "feed_forward.w3",
    "norm2": "attention_norm2",
    **same("ffn_norm1", "ffn_norm2"),
}
MODULATED = {**BLOCK, "norm1.norm": "attention_norm1", "norm1.linear": "adaLN_modulation.1"}
# The context refiner has no modulation.
PLAIN = {**BLOCK, "norm1": "attention_norm1"}
DIFFUSERS = {
    **same("x_embedder"),
    "time_caption_embed.caption_embedder.0": "cap_embedder.0",
    "time_caption_embed.caption_embedder.1": "cap_embedder.1",
    **under("time_caption_embed.timestep_embedder", "t_embedder.mlp", SEQUENCE),
    **under("noise_refiner.*", "noise_refiner.*", MODULATED),
    **under("context_refiner.*", "context_refiner.*", PLAIN),
    **under("layers.*", "layers.*", MODULATED),
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "final_layer.linear",
}

ARCHITECTURE = Architecture(
    order=5,
    layouts=(
        Layout(
            marks=("cap_embedder.1", "layers.*.attention.qkv", "layers.*.adaLN_modulation.1"),
            diffusers=DIFFUSERS,
        ),
    ),
    tokens={
        "x_embedder": "places",
        "noise_refiner.*.adaLN_modulation": "text",
        "layers.*.adaLN_modulation": "text",
        "noise_refiner.*": "places",
        "layers.*": "text, places",
        "final_layer.linear": "text, places",
    },
    families=(
        Family(
            "Lumina 2",
            said=r"lumina",
            width=(r"layers_\d+_attention_(qkv|to_q|to_k)$", 2304),
            sizes=(Size({"layers": 26}, "LUMINA2"),),
        ),
    ),
)
