"""Lens, whose layers have one name in the host and in published files."""

from __future__ import annotations

from .notation import Layout
from .record import Architecture

BLOCK = "transformer_blocks.*"

ARCHITECTURE = Architecture(
    layouts=(Layout(marks=("txt_in", f"{BLOCK}.attn.img_qkv", f"{BLOCK}.attn.to_add_out")),),
    tokens={
        "img_in": "places",
        **dict.fromkeys(
            (f"{BLOCK}.{sublayer}" for sublayer in ("attn.img_qkv", "attn.to_out", "img_mlp")), "places"
        ),
        "proj_out": "places",
    },
)
