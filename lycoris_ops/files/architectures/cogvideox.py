"""CogVideoX: ComfyUI's layout beside the names of diffusers.

Source of the correspondence: the classes themselves, `CogVideoXTransformer3DModel` in diffusers
(Apache-2.0), `models/transformers/cogvideox_transformer_3d.py`: ComfyUI's blocks hold the same layers,
in the same order of rows, without the attention and feed-forward modules around them.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...algebra import Shape
from .base import Places
from .patterns import below, following, gathered, renamed

BLOCK = {
    "q": "attn1.to_q",
    "k": "attn1.to_k",
    "v": "attn1.to_v",
    "attn_out": "attn1.to_out.0",
    "norm_q": "attn1.norm_q",
    "norm_k": "attn1.norm_k",
    "ff_proj": "ff.net.0.proj",
    "ff_out": "ff.net.2",
    "norm1": "norm1",
    "norm2": "norm2",
}
TABLE = {
    "time_embedding_linear_1": "time_embedding.linear_1",
    "time_embedding_linear_2": "time_embedding.linear_2",
    "ofs_embedding_linear_1": "ofs_embedding.linear_1",
    "ofs_embedding_linear_2": "ofs_embedding.linear_2",
    **below("blocks.*", "transformer_blocks.*", BLOCK),
}


def diffusers(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """Nothing for another architecture."""
    if not {"blocks.0.norm1.linear", "blocks.0.ff_proj", "blocks.0.q"} <= shapes.keys():
        return {}
    return gathered(shapes, renamed(shapes, TABLE))


aliases = following(diffusers)
