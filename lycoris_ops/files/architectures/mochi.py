"""Mochi 1: the original layout beside the names of diffusers.

Source of the correspondence: diffusers (Apache-2.0), `convert_mochi_transformer_checkpoint_to_diffusers`
in `loaders/single_file_utils.py`: gate and value of the feed-forward, and shift and scale of the last
modulation, change places. The last block's text stream ends before its output, and its modulation,
which has no gate, has another name.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...algebra import Shape
from .base import Places
from .patterns import below, following, gathered, renamed, split_qkv, swapped

BLOCK = {
    "mod_x": "norm1.linear",
    "mod_y": "norm1_context.linear",
    "attn.q_norm_x": "attn1.norm_q",
    "attn.k_norm_x": "attn1.norm_k",
    "attn.q_norm_y": "attn1.norm_added_q",
    "attn.k_norm_y": "attn1.norm_added_k",
    "attn.proj_x": "attn1.to_out.0",
    "attn.proj_y": "attn1.to_add_out",
    "mlp_x.w2": "ff.net.2",
    "mlp_y.w2": "ff_context.net.2",
}
TABLE = {
    "x_embedder": "patch_embed",
    "t_embedder.mlp.0": "time_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_embed.timestep_embedder.linear_2",
    "t5_y_embedder": "time_embed.pooler",
    "t5_yproj": "time_embed.caption_proj",
    "final_layer.linear": "proj_out",
    **below("blocks.*", "transformer_blocks.*", BLOCK),
}
SWAPPED = {
    "blocks.*.mlp_x.w1": "transformer_blocks.*.ff.net.0.proj",
    "blocks.*.mlp_y.w1": "transformer_blocks.*.ff_context.net.0.proj",
    "final_layer.mod": "norm_out.linear",
}
STREAMS = {
    "x": ("to_q", "to_k", "to_v"),
    "y": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


def diffusers(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """Nothing for another architecture."""
    if not {"t5_yproj", "blocks.0.attn.qkv_x"} <= shapes.keys():
        return {}
    last = max(int(path.split(".")[1]) for path in shapes if path.startswith("blocks."))
    last_modulation = {f"blocks.{last}.mod_y": f"transformer_blocks.{last}.norm1_context.linear_1"}
    tables = [renamed(shapes, {**last_modulation, **TABLE}), swapped(shapes, SWAPPED)]
    for stream, (query, key, value) in STREAMS.items():
        block = "transformer_blocks.*.attn1"
        # Both streams attend together, so the size is the same, and every block has an output for x.
        names = (f"{block}.{query}", f"{block}.{key}", f"{block}.{value}")
        tables.append(split_qkv(shapes, f"blocks.*.attn.qkv_{stream}", "blocks.*.attn.proj_x", names))
    return gathered(shapes, *tables)


aliases = following(diffusers)
