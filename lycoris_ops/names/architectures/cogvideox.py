"""CogVideoX: maps diffusers' names to ComfyUI's layout.

Source: `CogVideoXTransformer3DModel` in diffusers (Apache-2.0),
`models/transformers/cogvideox_transformer_3d.py`. ComfyUI's blocks hold the same layers with the same order
of rows, but without the attention and feed-forward modules around them.
"""

from __future__ import annotations

from .notation import Layout, same, under
from .record import Architecture

BLOCK = {
    "attn1.to_q": "q",
    "attn1.to_k": "k",
    "attn1.to_v": "v",
    "attn1.to_out.0": "attn_out",
    "attn1.norm_q": "norm_q",
    "attn1.norm_k": "norm_k",
    "ff.net.0.proj": "ff_proj",
    "ff.net.2": "ff_out",
    **same("norm1.linear", "norm1.norm", "norm2.linear", "norm2.norm"),
}
DIFFUSERS = {
    **same("patch_embed.proj", "patch_embed.text_proj", "patch_embed.pos_embedding"),
    "time_embedding.linear_1": "time_embedding_linear_1",
    "time_embedding.linear_2": "time_embedding_linear_2",
    "ofs_embedding.linear_1": "ofs_embedding_linear_1",
    "ofs_embedding.linear_2": "ofs_embedding_linear_2",
    **under("transformer_blocks.*", "blocks.*", BLOCK),
    **same("norm_final", "norm_out.linear", "norm_out.norm", "proj_out"),
}

ARCHITECTURE = Architecture(
    layouts=(Layout(marks=("blocks.*.norm1.linear", "blocks.*.ff_proj", "blocks.*.q"), diffusers=DIFFUSERS),),
    tokens={
        # `patch_embed.proj` is left out: it takes each frame as a sample.
        **dict.fromkeys(
            (f"blocks.*.{layer}" for layer in ("q", "k", "v", "attn_out", "ff_proj", "ff_out")),
            "text, places",
        ),
        "proj_out": "places",
    },
)
