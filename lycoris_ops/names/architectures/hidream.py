"""HiDream I1. Its layers have the same names in the host, in published files and in diffusers.

Source: the class in diffusers (Apache-2.0), `models/transformers/transformer_hidream_image.py`.
"""

from __future__ import annotations

from .notation import Layout, same
from .record import Architecture, Family

ARCHITECTURE = Architecture(
    layouts=(
        Layout(
            marks=("double_stream_blocks.*.block.attn1.to_q_t", "single_stream_blocks.*.block.attn1.to_q"),
            diffusers=same("**"),
        ),
    ),
    # The model reads several layers of its text encoders, each through an embedder.
    aside={"caption_projection.*": "embedders of captions"},
    tokens={
        "x_embedder.proj": "places",
        # Each expert gets some of the tokens. Which ones is not known, so none counts as a place.
        **dict.fromkeys(
            (f"{blocks}.*.block.ff_i.experts" for blocks in ("double_stream_blocks", "single_stream_blocks")),
            "text",
        ),
        **dict.fromkeys(
            (f"double_stream_blocks.*.block.attn1.to_{end}" for end in ("q", "k", "v", "out")), "places"
        ),
        "double_stream_blocks.*.block.ff_i": "places",
        **dict.fromkeys(
            (f"single_stream_blocks.*.block.{sublayer}" for sublayer in ("attn1", "ff_i")), "places, text"
        ),
        "final_layer.linear": "places",
    },
    families=(Family("HiDream", said=r"hidream", mark=r"(double|single)_stream_blocks_\d"),),
)
