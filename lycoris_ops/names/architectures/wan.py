"""Wan 2.1 and 2.2 with their variants: maps diffusers' names to the original layout.

Variants: image to video, VACE, Fun control and camera, Animate; those that diffusers does not have
(S2V, HuMo, SCAIL, WanDancer) share the blocks. Source of the correspondence: diffusers (Apache-2.0),
`convert_wan_transformer_to_diffusers` in `loaders/single_file_utils.py`.
"""

from __future__ import annotations

from .notation import SEQUENCE, Layout, same, split, under
from .record import Architecture, Family, Size

ATTENTION = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "norm_added_k": "norm_k_img",
}
BLOCK = {
    **under("attn1", "self_attn", ATTENTION),
    **under("attn2", "cross_attn", ATTENTION),
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    # The norm before the cross-attention: diffusers numbers norms in the order of use.
    "norm2": "norm3",
    "scale_shift_table": "modulation",
    "proj_in": "before_proj",
    "proj_out": "after_proj",
}
IMAGE = {
    "norm1": "proj.0",
    "ff.net.0.proj": "proj.1",
    "ff.net.2": "proj.3",
    "norm2": "proj.4",
    "pos_embed": "emb_pos",
}
MOTION_BLOCK = {
    "conv1": "conv1.0",
    "conv2": "conv2.1",
    "conv_skip": "skip.1",
}
MOTION_BLOCKS = 7
MOTION = {
    "motion_synthesis_weight": "dec.direction",
    "motion_network.*": "enc.fc.*",
    "conv_in": "enc.net_app.convs.0.0",
    **{
        name: meaning
        for n in range(MOTION_BLOCKS)
        for name, meaning in under(f"res_blocks.{n}", f"enc.net_app.convs.{n + 1}", MOTION_BLOCK).items()
    },
    "conv_out": "enc.net_app.convs.8",
}
FACE = {
    "to_q": "linear1_q",
    **split("linear1_kv", "to_k", "to_v"),
    "to_out": "linear2",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}
DIFFUSERS = {
    **same("patch_embedding", "vace_patch_embedding", "pose_patch_embedding"),
    **under("condition_embedder.time_embedder", "time_embedding", SEQUENCE),
    "condition_embedder.time_proj": "time_projection.1",
    **under("condition_embedder.text_embedder", "text_embedding", SEQUENCE),
    **under("condition_embedder.image_embedder", "img_emb", IMAGE),
    **under("blocks.*", "blocks.*", BLOCK),
    **under("vace_blocks.*", "vace_blocks.*", BLOCK),
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
    **under("motion_encoder", "motion_encoder", MOTION),
    **under("face_adapter.*", "face_adapter.fuser_blocks.*", FACE),
    "face_encoder.conv1_local": "face_encoder.conv1_local.conv",
    "face_encoder.conv2": "face_encoder.conv2.conv",
    "face_encoder.conv3": "face_encoder.conv3.conv",
    **same("face_encoder.out_proj", "face_encoder.norm1", "face_encoder.norm2", "face_encoder.norm3"),
    **same("face_encoder.padding_tokens"),
}

ARCHITECTURE = Architecture(
    order=6,
    layouts=(Layout(marks=("head.head", "blocks.*.self_attn.q", "text_embedding.0"), diffusers=DIFFUSERS),),
    tokens={
        **dict.fromkeys(
            (
                f"{blocks}.*.cross_attn.{layer}"
                for blocks in ("blocks", "vace_blocks")
                for layer in ("k", "v", "k_img", "v_img")
            ),
            "for places",
        ),
        **dict.fromkeys(("patch_embedding", "vace_patch_embedding", "blocks.*", "vace_blocks.*"), "places"),
        "head.head": "places",
    },
    # S2V's scales and shifts, made from the sound.
    aside={"audio_injector.injector_adain_layers": "modulation"},
    families=(
        Family(
            "Wan",
            said=r"wan",
            mark=r"blocks_\d+_(self|cross)_attn_[qkvo]$",
            sizes=(Size({"blocks": 30}, "WAN-1.3B"), Size({"blocks": 40}, "WAN-14B")),
            experts=True,
        ),
    ),
)
