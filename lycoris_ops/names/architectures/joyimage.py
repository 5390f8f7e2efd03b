"""JoyImage, whose layers have one name in the host, in published files and in diffusers.

Source: the class in diffusers (Apache-2.0), `models/transformers/transformer_joyimage.py`.
"""

from __future__ import annotations

from .notation import Layout, same
from .record import Architecture

ARCHITECTURE = Architecture(
    layouts=(
        Layout(
            marks=("condition_embedder.time_proj", "double_blocks.*.attn.img_attn_qkv"),
            diffusers=same("**"),
        ),
    ),
    tokens={
        "img_in": "places",
        **dict.fromkeys(
            (f"double_blocks.*.attn.img_attn_{sublayer}" for sublayer in ("qkv", "proj")), "places"
        ),
        "double_blocks.*.img_mlp": "places",
        "proj_out": "places",
    },
)
