"""Kandinsky 5, whose layers have one name in the host, in published files and in diffusers.

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
)
