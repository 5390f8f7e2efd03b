"""Krea 2: the original layout beside the names of diffusers.

Source of the correspondence: diffusers (Apache-2.0), `convert_krea2_transformer_checkpoint_to_diffusers`
in `loaders/single_file_utils.py`. The blocks' modulation vectors, which have another shape there, are
left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...algebra import Shape
from .base import Places
from .patterns import below, following, gathered, renamed

BLOCK = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "attn.qknorm.qnorm.scale": "attn.norm_q",
    "attn.qknorm.knorm.scale": "attn.norm_k",
    "mlp": "ff",
    "prenorm.scale": "norm1",
    "postnorm.scale": "norm2",
}
TABLE = {
    "first": "img_in",
    "tmlp.0": "time_embed.linear_1",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.0.scale": "txt_in.norm",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": "text_fusion.projector",
    **below("txtfusion.layerwise_blocks.*", "text_fusion.layerwise_blocks.*", BLOCK),
    **below("txtfusion.refiner_blocks.*", "text_fusion.refiner_blocks.*", BLOCK),
    **below("blocks.*", "transformer_blocks.*", BLOCK),
    "last.linear": "final_layer.linear",
    "last.norm.scale": "final_layer.norm",
    "last.modulation.lin": "final_layer.scale_shift_table",
}


def diffusers(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """Nothing for another architecture."""
    if not {"txtfusion.projector", "blocks.0.attn.wq"} <= shapes.keys():
        return {}
    return gathered(shapes, renamed(shapes, TABLE))


aliases = following(diffusers)
