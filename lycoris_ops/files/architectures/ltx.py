"""LTX-Video and LTX-2 (video and audio): the original layout beside the names of diffusers.

Source of the correspondence: diffusers (Apache-2.0), `convert_ltx_transformer_checkpoint_to_diffusers`
in `loaders/single_file_utils.py`, `_convert_non_diffusers_ltx2_lora_to_diffusers` in
`loaders/lora_conversion_utils.py` and, for the connectors that are a model of their own there,
`scripts/convert_ltx2_to_diffusers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...algebra import Shape
from .base import Places
from .patterns import below, following, gathered, renamed

CONNECTOR = {
    "transformer_1d_blocks.*.attn1.q_norm": "transformer_blocks.*.attn1.norm_q",
    "transformer_1d_blocks.*.attn1.k_norm": "transformer_blocks.*.attn1.norm_k",
    "transformer_1d_blocks": "transformer_blocks",
    "learnable_registers": "learnable_registers",
}
TABLE = {
    "patchify_proj": "proj_in",
    "adaln_single": "time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_patchify_proj": "audio_proj_in",
    "audio_adaln_single": "audio_time_embed",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "transformer_blocks.*.*.q_norm": "transformer_blocks.*.*.norm_q",
    "transformer_blocks.*.*.k_norm": "transformer_blocks.*.*.norm_k",
    "transformer_blocks.*.scale_shift_table_a2v_ca_video": (
        "transformer_blocks.*.video_a2v_cross_attn_scale_shift_table"
    ),
    "transformer_blocks.*.scale_shift_table_a2v_ca_audio": (
        "transformer_blocks.*.audio_a2v_cross_attn_scale_shift_table"
    ),
    **below("video_embeddings_connector", "connectors.video_connector", CONNECTOR),
    **below("audio_embeddings_connector", "connectors.audio_connector", CONNECTOR),
}


def diffusers(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """Nothing for another architecture."""
    if not {"patchify_proj", "transformer_blocks.0.attn1.to_q"} <= shapes.keys():
        return {}
    return gathered(shapes, renamed(shapes, TABLE))


aliases = following(diffusers)
