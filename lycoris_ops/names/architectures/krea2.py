"""Krea 2: maps diffusers' names to the original layout.

Source of the correspondence: diffusers (Apache-2.0), `convert_krea2_transformer_checkpoint_to_diffusers`
in `loaders/single_file_utils.py`. The blocks' modulation vectors are left out:
their shape differs in diffusers.
"""

from __future__ import annotations

from .notation import SEQUENCE, Layout, under
from .record import Architecture, Family, Size

BLOCK = {
    "attn.to_q": "attn.wq",
    "attn.to_k": "attn.wk",
    "attn.to_v": "attn.wv",
    "attn.to_out.0": "attn.wo",
    "attn.to_gate": "attn.gate",
    "attn.norm_q": "attn.qknorm.qnorm.scale",
    "attn.norm_k": "attn.qknorm.knorm.scale",
    "ff.gate": "mlp.gate",
    "ff.up": "mlp.up",
    "ff.down": "mlp.down",
    "norm1": "prenorm.scale",
    "norm2": "postnorm.scale",
}
DIFFUSERS = {
    "img_in": "first",
    **under("time_embed", "tmlp", SEQUENCE),
    "time_mod_proj": "tproj.1",
    "txt_in.norm": "txtmlp.0.scale",
    "txt_in.linear_1": "txtmlp.1",
    "txt_in.linear_2": "txtmlp.3",
    "text_fusion.projector": "txtfusion.projector",
    **under("text_fusion.layerwise_blocks.*", "txtfusion.layerwise_blocks.*", BLOCK),
    **under("text_fusion.refiner_blocks.*", "txtfusion.refiner_blocks.*", BLOCK),
    **under("transformer_blocks.*", "blocks.*", BLOCK),
    "final_layer.linear": "last.linear",
    "final_layer.norm": "last.norm.scale",
    "final_layer.scale_shift_table": "last.modulation.lin",
}

ARCHITECTURE = Architecture(
    layouts=(Layout(marks=("txtfusion.projector", "blocks.*.attn.wq"), diffusers=DIFFUSERS),),
    tokens={
        "first": "places",
        **dict.fromkeys((f"blocks.*.{sublayer}" for sublayer in ("attn", "mlp")), "text, places"),
        "last.linear": "text, places",
    },
    families=(
        Family(
            "Krea 2",
            said=r"krea-?_?2",
            mark=r"txtfusion_|text_fusion_|blocks_\d+_attn_w[qkvo]$|transformer_blocks_\d+_attn_to_gate$",
            sizes=(Size({"blocks": 28}, "KREA2"),),
        ),
    ),
)
