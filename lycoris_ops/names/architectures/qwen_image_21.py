"""Qwen-Image 2.1: one stream of text and picture, and one modulation for all blocks.

Its layers have the same names in the host and in diffusers, except that newer hosts fuse the first two layers
of the MLP. Source: the class in diffusers (Apache-2.0), `QwenImage21Transformer2DModel`.
"""

from __future__ import annotations

from .notation import Layout, fused, same, split
from .record import Architecture, Family

MLP = "transformer_blocks.*.img_mlp"

ARCHITECTURE = Architecture(
    layouts=(
        Layout(
            marks=("txt_in.text_norm", "modulation.1", f"{MLP}.out"),
            diffusers={
                **same("**"),
                **split(f"{MLP}.gate_up", f"{MLP}.gate_layer", f"{MLP}.proj"),
            },
            others={f"{MLP}.gate_up": fused(f"{MLP}.gate_layer", f"{MLP}.proj")},
        ),
    ),
    families=(
        Family(
            "Qwen-Image 2.1",
            said=r"qwen.*2\.1",
            mark=r"transformer_blocks_\d+_img_mlp_(gate_layer|gate_up|proj$|out$)|txt_in_(in|out)_layer",
        ),
    ),
)
