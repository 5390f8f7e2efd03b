"""Mochi 1: maps diffusers' names to the original layout.

Source of the correspondence: diffusers (Apache-2.0), `convert_mochi_transformer_checkpoint_to_diffusers` in
`loaders/single_file_utils.py`. That conversion exchanges gate and value of the feed-forward, and shift and
scale of the last modulation. The last block has no text output, so its text modulation has no gate. diffusers
gives it another name.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...maths.shapes import Shape
from .notation import SEQUENCE, Layout, Table, same, split, swapped, under
from .record import Architecture, Family, Size

BLOCK = {
    "norm1.linear": "mod_x",
    "norm1_context.linear": "mod_y",
    **split("attn.qkv_x", "attn1.to_q", "attn1.to_k", "attn1.to_v"),
    **split("attn.qkv_y", "attn1.add_q_proj", "attn1.add_k_proj", "attn1.add_v_proj"),
    "attn1.norm_q": "attn.q_norm_x",
    "attn1.norm_k": "attn.k_norm_x",
    "attn1.norm_added_q": "attn.q_norm_y",
    "attn1.norm_added_k": "attn.k_norm_y",
    "attn1.to_out.0": "attn.proj_x",
    "attn1.to_add_out": "attn.proj_y",
    "ff.net.0.proj": swapped("mlp_x.w1"),
    "ff.net.2": "mlp_x.w2",
    "ff_context.net.0.proj": swapped("mlp_y.w1"),
    "ff_context.net.2": "mlp_y.w2",
}
DIFFUSERS = {
    "patch_embed.proj": "x_embedder.proj",
    **under("time_embed.timestep_embedder", "t_embedder.mlp", SEQUENCE),
    "time_embed.pooler.to_kv": "t5_y_embedder.to_kv",
    "time_embed.pooler.to_q": "t5_y_embedder.to_q",
    "time_embed.pooler.to_out": "t5_y_embedder.to_out",
    "time_embed.caption_proj": "t5_yproj",
    **same("pos_frequencies"),
    **under("transformer_blocks.*", "blocks.*", BLOCK),
    "norm_out.linear": swapped("final_layer.mod"),
    "proj_out": "final_layer.linear",
}


def table(shapes: Mapping[str, Shape]) -> Table:
    """The table for one model. In the last block the text modulation has another name."""
    last = max(int(path.split(".")[1]) for path in shapes if path.startswith("blocks."))
    return {**DIFFUSERS, f"transformer_blocks.{last}.norm1_context.linear_1": f"blocks.{last}.mod_y"}


ARCHITECTURE = Architecture(
    layouts=(Layout(marks=("t5_yproj", "blocks.*.attn.qkv_x"), diffusers=table),),
    aside=dict.fromkeys(("blocks.*.mod_x", "blocks.*.mod_y"), "modulation"),
    tokens={
        # The first convolution is not here: it takes each frame as a sample.
        **dict.fromkeys((f"blocks.*.{layer}" for layer in ("attn.qkv_x", "attn.proj_x", "mlp_x")), "places"),
        "final_layer.linear": "places",
    },
    families=(
        Family(
            "Mochi",
            said=r"mochi",
            mark=r"blocks_\d+_attn_qkv_[xy]|transformer_blocks_\d+_attn1_(add_[qkv]_proj|to_add_out)$",
            sizes=(Size({"blocks": 48}, "MOCHI"),),
        ),
    ),
)
