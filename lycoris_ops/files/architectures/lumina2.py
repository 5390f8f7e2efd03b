"""Lumina 2 and NewBie: the original layout beside the names of diffusers.

Source of the correspondence: diffusers (Apache-2.0), `convert_lumina2_to_diffusers` in
`loaders/single_file_utils.py`; it knows one size only, here the rows are read from the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...algebra import Shape
from .base import Places
from .patterns import below, following, gathered, renamed, split_qkv

BLOCK = {
    "attention.out": "attn.to_out.0",
    "attention.q_norm": "attn.norm_q",
    "attention.k_norm": "attn.norm_k",
    "feed_forward.w1": "feed_forward.linear_1",
    "feed_forward.w2": "feed_forward.linear_2",
    "feed_forward.w3": "feed_forward.linear_3",
    "attention_norm2": "norm2",
}
MODULATED = {**BLOCK, "attention_norm1": "norm1.norm", "adaLN_modulation.1": "norm1.linear"}
PLAIN = {**BLOCK, "attention_norm1": "norm1"}
BLOCKS = {"layers.*": MODULATED, "noise_refiner.*": MODULATED, "context_refiner.*": PLAIN}
TABLE = {
    "cap_embedder": "time_caption_embed.caption_embedder",
    "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear_1",
    "final_layer.linear": "norm_out.linear_2",
}


def diffusers(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """Nothing for another architecture."""
    if not {"cap_embedder.1", "layers.0.attention.qkv", "layers.0.adaLN_modulation.1"} <= shapes.keys():
        return {}
    tables = [renamed(shapes, TABLE)]
    for block, table in BLOCKS.items():
        tables.append(renamed(shapes, below(block, block, table)))
        names = (f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v")
        tables.append(split_qkv(shapes, f"{block}.attention.qkv", f"{block}.attention.out", names))
    return gathered(shapes, *tables)


aliases = following(diffusers)
