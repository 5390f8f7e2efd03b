"""MiniMax-H3: maps diffusers' names to ComfyUI's layout.

Source of the correspondence: diffusers (Apache-2.0), `convert_minimax_h3_transformer_checkpoint_to_diffusers`
in `loaders/single_file_utils.py`. It exchanges gate and value of the feed-forward.

The rows of `qkv_proj` are all of the query, then the key, then the value, as in every published single file.
In the original shards the rows are ordered head by head, each with its query, key and value. Adapters that
DiffSynth-Studio trains on these shards have the same order: see `dialects/diffsynth.py`.
"""

from __future__ import annotations

from .notation import Layout, same, split, swapped, under
from .record import Architecture

BLOCK = {
    **split("attn.qkv_proj", "attn.to_q", "attn.to_k", "attn.to_v", output="attn.out_proj"),
    "attn.norm_q": "attn.q_norm",
    "attn.norm_k": "attn.k_norm",
    "attn.to_out.0": "attn.out_proj",
    "ff.net.0.proj": swapped("mlp.fc1"),
    "ff.net.2": "mlp.fc2",
    **same("norm1", "norm2", "adaln_proj.linear"),
}
DIFFUSERS = {
    "proj_in": "video_patch_proj",
    "audio_proj_in": "audio_patch_proj",
    "context_embedder": "condition_proj",
    "time_embedder.linear_1": "time_embedder.proj_in",
    "time_embedder.linear_2": "time_embedder.proj_out",
    **under("token_refiner.refiner_blocks.*", "token_refiner.blocks.*", BLOCK),
    **same("token_refiner.final_norm"),
    **under("transformer_blocks.*", "blocks.*", BLOCK),
    "norm_out.norm": "final_layer.norm",
    "norm_out.linear": "final_layer.adaln_proj.linear",
    "proj_out": "final_layer.video_out",
    "audio_proj_out": "final_layer.audio_out",
}

ARCHITECTURE = Architecture(
    layouts=(Layout(marks=("video_patch_proj", "blocks.*.attn.qkv_proj"), diffusers=DIFFUSERS),),
    # The tokens of sound come after those of the text.
    tokens={
        "video_patch_proj": "places",
        "token_refiner": "text",
        "blocks.*.attn": "text, places",
        "blocks.*.mlp": "text, places",
        "final_layer.video_out": "places",
    },
)
