"""Stable Cascade, stages C and B, under the names of diffusers and of the original code.

The original code and its files have query, key and value in one parameter, `in_proj_weight`;
OneTrainer's original layout counts its thirds.

Source of the correspondence: the conversion of original checkpoints in diffusers (Apache-2.0),
`diffusers/loaders/single_file_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...algebra import Shape
from .base import Places
from .tables import Meaning, find, fused, split, under

QUERY_KEY_VALUE = ("attn.to_q", "attn.to_k", "attn.to_v")
ATTENTION = {
    "to_q": "attn.to_q",
    "to_k": "attn.to_k",
    "to_v": "attn.to_v",
    "to_out.0": "attn.out_proj",
    "attn.in_proj.0": "attn.to_q",
    "attn.in_proj.1": "attn.to_k",
    "attn.in_proj.2": "attn.to_v",
    "attn.in_proj_weight": fused(*QUERY_KEY_VALUE),
    "to_qkv": fused(*QUERY_KEY_VALUE),
}
ORIGINAL = {
    **split("attn.in_proj_weight", *QUERY_KEY_VALUE),
    **split("attn.in_proj_weight", "to_q", "to_k", "to_v"),
    **split("attn.in_proj_weight", "attn.in_proj.0", "attn.in_proj.1", "attn.in_proj.2"),
    "to_qkv": "attn.in_proj_weight",
    "to_out.0": "attn.out_proj",
}
STAGE_B: dict[str, Meaning] = {"clip_txt_pooled_mapper": "clip_mapper"}
LEVELS = ("down_blocks.*.*.attention", "up_blocks.*.*.attention")


def aliases(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    if not {"clf.1", "embedding.1"} <= shapes.keys():
        return {}
    original = any(path.endswith(".attn.in_proj_weight") for path in shapes)
    attention = ORIGINAL if original else ATTENTION
    names = STAGE_B | under(LEVELS[0], LEVELS[0], attention) | under(LEVELS[1], LEVELS[1], attention)
    return find(names, shapes)
