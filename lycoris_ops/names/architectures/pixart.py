"""PixArt Alpha and Sigma under the names of diffusers.

Source of the correspondence: diffusers (Apache-2.0), `scripts/convert_pixart_alpha_to_diffusers.py` and
`scripts/convert_pixart_sigma_to_diffusers.py`.
"""

from __future__ import annotations

from .notation import SEQUENCE, Layout, same, split, under
from .record import Architecture, Family

BLOCK = {
    **same("scale_shift_table"),
    **split("attn.qkv", "attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn1.to_out.0": "attn.proj",
    "attn2.to_q": "cross_attn.q_linear",
    **split("cross_attn.kv_linear", "attn2.to_k", "attn2.to_v"),
    "attn2.to_out.0": "cross_attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
DIFFUSERS = {
    "pos_embed.proj": "x_embedder.proj",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    **under("adaln_single.emb.timestep_embedder", "t_embedder.mlp", SEQUENCE),
    # Only Alpha has embedders of resolution and aspect ratio.
    **under("adaln_single.emb.resolution_embedder", "csize_embedder.mlp", SEQUENCE),
    **under("adaln_single.emb.aspect_ratio_embedder", "ar_embedder.mlp", SEQUENCE),
    "adaln_single.linear": "t_block.1",
    **under("transformer_blocks.*", "blocks.*", BLOCK),
    "scale_shift_table": "final_layer.scale_shift_table",
    "proj_out": "final_layer.linear",
}

ARCHITECTURE = Architecture(
    layouts=(Layout(marks=("t_block.1", "blocks.*.cross_attn.kv_linear"), diffusers=DIFFUSERS),),
    tokens={
        "x_embedder": "places",
        # The keys and values of all samples are one sequence.
        "blocks.*.cross_attn.kv_linear": "for places, in turn",
        "blocks.*": "places",
        "final_layer.linear": "places",
    },
    families=(
        Family(
            "PixArt",
            said=r"pixart",
            mark=r"blocks_\d+_cross_attn_kv_linear",
            like=r"transformer_blocks_\d+_attn1_to_[qkv]$",
        ),
    ),
)
