"""Qwen-Image. Its layers have the same names in the host, in published files and in diffusers.

Source: the class in diffusers (Apache-2.0), `models/transformers/transformer_qwenimage.py`.
"""

from __future__ import annotations

from .notation import Layout, same
from .record import Architecture, Family, Size

ARCHITECTURE = Architecture(
    order=3,
    layouts=(
        Layout(
            marks=("txt_norm", "transformer_blocks.*.img_mod.1", "transformer_blocks.*.attn.add_q_proj"),
            diffusers=same("**"),
        ),
    ),
    tokens={
        "img_in": "places",
        "transformer_blocks.*.img_mlp": "places",
        **dict.fromkeys((f"transformer_blocks.*.attn.to_{end}" for end in ("q", "k", "v", "out")), "places"),
        "proj_out": "places",
    },
    families=(
        Family(
            "Qwen-Image",
            said=r"qwen",
            mark=r"transformer_blocks_\d+_(img_mlp_net|txt_mlp|img_mod)",
            sizes=(Size({"transformer": 60}, "QWEN-IMAGE"),),
        ),
    ),
)
