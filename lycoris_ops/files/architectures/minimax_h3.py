"""MiniMax-H3: ComfyUI's layout beside the names of diffusers.

Source of the correspondence: diffusers (Apache-2.0), `convert_minimax_h3_transformer_checkpoint_to_diffusers`
in `loaders/single_file_utils.py`: gate and value of the feed-forward change places. Query, key and value
follow one another as in every published single file; in the original shards, and in adapters that
DiffSynth-Studio trains on them, each head has its own three, which names and shapes do not tell.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...algebra import Shape
from .base import Places
from .patterns import below, following, gathered, renamed, split_qkv, swapped

BLOCK = {
    "attn.q_norm": "attn.norm_q",
    "attn.k_norm": "attn.norm_k",
    "attn.out_proj": "attn.to_out.0",
    "mlp.fc2": "ff.net.2",
    "norm1": "norm1",
    "norm2": "norm2",
    "adaln_proj": "adaln_proj",
}
BLOCKS = {
    "blocks.*": "transformer_blocks.*",
    "token_refiner.blocks.*": "token_refiner.refiner_blocks.*",
}
TABLE = {
    "video_patch_proj": "proj_in",
    "audio_patch_proj": "audio_proj_in",
    "condition_proj": "context_embedder",
    "time_embedder.proj_in": "time_embedder.linear_1",
    "time_embedder.proj_out": "time_embedder.linear_2",
    "final_layer.norm": "norm_out.norm",
    "final_layer.adaln_proj.linear": "norm_out.linear",
    "final_layer.video_out": "proj_out",
    "final_layer.audio_out": "audio_proj_out",
}


def diffusers(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """Nothing for another architecture."""
    if not {"video_patch_proj", "blocks.0.attn.qkv_proj"} <= shapes.keys():
        return {}
    tables = [renamed(shapes, TABLE)]
    for ours, theirs in BLOCKS.items():
        tables.append(renamed(shapes, below(ours, theirs, BLOCK)))
        tables.append(swapped(shapes, {f"{ours}.mlp.fc1": f"{theirs}.ff.net.0.proj"}))
        names = (f"{theirs}.attn.to_q", f"{theirs}.attn.to_k", f"{theirs}.attn.to_v")
        tables.append(split_qkv(shapes, f"{ours}.attn.qkv_proj", f"{ours}.attn.out_proj", names))
    return gathered(shapes, *tables)


aliases = following(diffusers)
