"""Kandinsky 5. Its layers have the same names in the host, in published files and in diffusers.

Source: the class in diffusers (Apache-2.0), `models/transformers/transformer_kandinsky.py`.
"""

from __future__ import annotations

from .notation import Layout, same
from .record import Architecture

ARCHITECTURE = Architecture(
    layouts=(
        Layout(
            marks=("visual_embeddings.in_layer", "visual_transformer_blocks.*.self_attention.to_query"),
            diffusers=same("**"),
        ),
    ),
    tokens={
        "visual_embeddings.in_layer": "places",
        # The host reshapes keys and values to the batch size of the text.
        **dict.fromkeys(
            (f"visual_transformer_blocks.*.cross_attention.to_{end}" for end in ("key", "value")),
            "for places, in turn",
        ),
        **dict.fromkeys(
            (
                f"visual_transformer_blocks.*.{sublayer}"
                for sublayer in ("self_attention", "cross_attention", "feed_forward")
            ),
            "places",
        ),
        "out_layer.out_layer": "places",
    },
)
