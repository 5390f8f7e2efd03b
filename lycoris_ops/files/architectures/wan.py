"""Wan 2.1 and 2.2 with their variants: the original layout beside the names of diffusers.

Variants: image to video, VACE, Fun control and camera, Animate; those that diffusers does not have
(S2V, HuMo, SCAIL, WanDancer) share the blocks. Source of the correspondence: diffusers (Apache-2.0),
`convert_wan_transformer_to_diffusers` in `loaders/single_file_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...algebra import Shape
from .base import Places
from .patterns import below, following, gathered, renamed, split_evenly

ATTENTION = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "k_img": "add_k_proj",
    "v_img": "add_v_proj",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "norm_k_img": "norm_added_k",
}
BLOCK = {
    **below("self_attn", "attn1", ATTENTION),
    **below("cross_attn", "attn2", ATTENTION),
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    # The norm before the cross-attention, which diffusers counts in the order of use.
    "norm3": "norm2",
    "modulation": "scale_shift_table",
    "before_proj": "proj_in",
    "after_proj": "proj_out",
}
IMAGE = {
    "proj.0": "norm1",
    "proj.1": "ff.net.0.proj",
    "proj.3": "ff.net.2",
    "proj.4": "norm2",
    "emb_pos": "pos_embed",
}
MOTION = {
    "dec.direction": "motion_synthesis_weight",
    "enc.fc": "motion_network",
    "enc.net_app.convs.0.0": "conv_in",
    "enc.net_app.convs.8": "conv_out",
}
MOTION_BLOCK = {
    "conv1.0": "conv1",
    "conv2.1": "conv2",
    "skip.1": "conv_skip",
}
MOTION_BLOCKS = range(1, 8)
FACE = {
    "linear1_q": "to_q",
    "linear2": "to_out",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
TABLE = {
    **below("blocks.*", "blocks.*", BLOCK),
    **below("vace_blocks.*", "vace_blocks.*", BLOCK),
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    **below("img_emb", "condition_embedder.image_embedder", IMAGE),
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    **below("motion_encoder", "motion_encoder", MOTION),
    **{
        pattern: name
        for number in MOTION_BLOCKS
        for pattern, name in below(
            f"motion_encoder.enc.net_app.convs.{number}",
            f"motion_encoder.res_blocks.{number - 1}",
            MOTION_BLOCK,
        ).items()
    },
    **below("face_adapter.fuser_blocks.*", "face_adapter.*", FACE),
    "face_encoder.*.conv": "face_encoder.*",
}


def diffusers(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """Nothing for another architecture."""
    if not {"head.head", "blocks.0.self_attn.q", "text_embedding.0"} <= shapes.keys():
        return {}
    face = "face_adapter.fuser_blocks.*"
    keys_values = split_evenly(shapes, f"{face}.linear1_kv", ("face_adapter.*.to_k", "face_adapter.*.to_v"))
    return gathered(shapes, renamed(shapes, TABLE), keys_values)


aliases = following(diffusers)
