"""LTX-Video and LTX-2 (video and audio): maps diffusers' names to the original layout.

Source of the correspondence: diffusers (Apache-2.0), `convert_ltx_transformer_checkpoint_to_diffusers` in
`loaders/single_file_utils.py`, `_convert_non_diffusers_ltx2_lora_to_diffusers` in
`loaders/lora_conversion_utils.py` and `scripts/convert_ltx2_to_diffusers.py` for the connectors, a separate
model in diffusers.
"""

from __future__ import annotations

from .notation import Layout, same, under
from .record import Architecture, Family, Size

ATTENTIONS = (
    *("attn1", "attn2", "audio_attn1", "audio_attn2"),
    *("audio_to_video_attn", "video_to_audio_attn"),
)
NORMS = {"norm_q": "q_norm", "norm_k": "k_norm"}
BLOCK = {
    **{f"{layer}.{name}": f"{layer}.{norm}" for layer in ATTENTIONS for name, norm in NORMS.items()},
    "video_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_video",
    "audio_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_audio",
    **same("**"),
}
DIFFUSERS = {
    "proj_in": "patchify_proj",
    "time_embed.**": "adaln_single.**",
    "prompt_adaln.**": "prompt_adaln_single.**",
    "audio_proj_in": "audio_patchify_proj",
    "audio_time_embed.**": "audio_adaln_single.**",
    "audio_prompt_adaln.**": "audio_prompt_adaln_single.**",
    "av_cross_attn_video_scale_shift.**": "av_ca_video_scale_shift_adaln_single.**",
    "av_cross_attn_audio_scale_shift.**": "av_ca_audio_scale_shift_adaln_single.**",
    "av_cross_attn_video_a2v_gate.**": "av_ca_a2v_gate_adaln_single.**",
    "av_cross_attn_audio_v2a_gate.**": "av_ca_v2a_gate_adaln_single.**",
    **same("caption_projection.**", "audio_caption_projection.**"),
    **under("transformer_blocks.*", "transformer_blocks.*", BLOCK),
    **same("scale_shift_table", "audio_scale_shift_table", "proj_out", "audio_proj_out"),
}

CONNECTOR = {
    "transformer_blocks.*.attn1.norm_q": "transformer_1d_blocks.*.attn1.q_norm",
    "transformer_blocks.*.attn1.norm_k": "transformer_1d_blocks.*.attn1.k_norm",
    "transformer_blocks.**": "transformer_1d_blocks.**",
    "learnable_registers": "learnable_registers",
}
CONNECTORS = {
    **under("connectors.video_connector", "video_embeddings_connector", CONNECTOR),
    **under("connectors.audio_connector", "audio_embeddings_connector", CONNECTOR),
}

BLOCKS = "transformer_blocks.*"

ARCHITECTURE = Architecture(
    layouts=(
        Layout(
            marks=("patchify_proj", "transformer_blocks.*.attn1.to_q"), diffusers=DIFFUSERS, others=CONNECTORS
        ),
    ),
    tokens={
        "patchify_proj": "places",
        # The sound has tokens of its own.
        **dict.fromkeys((f"{BLOCKS}.attn2.to_{letter}" for letter in "kv"), "for places"),
        **dict.fromkeys((f"{BLOCKS}.audio_to_video_attn.to_{letter}" for letter in "kv"), "text"),
        **dict.fromkeys((f"{BLOCKS}.video_to_audio_attn.to_{letter}" for letter in "kv"), "places"),
        **dict.fromkeys(
            (f"{BLOCKS}.{layer}" for layer in ("attn1", "attn2", "audio_to_video_attn", "ff")), "places"
        ),
        "proj_out": "places",
    },
    signals={
        **dict.fromkeys(
            (
                *("patchify_proj", "adaln_single", "prompt_adaln_single", "caption_projection", "proj_out"),
                *("av_ca_video_scale_shift_adaln_single", "av_ca_a2v_gate_adaln_single"),
                *("video_embeddings_connector", "scale_shift_table"),
                *(f"{BLOCKS}.{layer}" for layer in ("attn1", "attn2", "ff", "audio_to_video_attn")),
                *(f"{BLOCKS}.{table}" for table in ("scale_shift_table", "scale_shift_table_a2v_ca_video")),
            ),
            "video",
        ),
        **dict.fromkeys(
            (
                *("audio_patchify_proj", "audio_adaln_single", "audio_prompt_adaln_single"),
                *("audio_caption_projection", "audio_proj_out", "audio_embeddings_connector"),
                *("av_ca_audio_scale_shift_adaln_single", "av_ca_v2a_gate_adaln_single"),
                *(f"{BLOCKS}.{layer}" for layer in ("audio_attn1", "audio_attn2", "audio_ff")),
                *(f"{BLOCKS}.{layer}" for layer in ("video_to_audio_attn", "scale_shift_table_a2v_ca_audio")),
                *("audio_scale_shift_table", f"{BLOCKS}.audio_scale_shift_table"),
            ),
            "audio",
        ),
    },
    families=(
        Family(
            "LTX-Video",
            said=r"ltx",
            like=r"transformer_blocks_\d+_attn1_to_[qkv]$",
            sizes=(Size({"transformer": 28}, "LTXV"),),
        ),
    ),
)
