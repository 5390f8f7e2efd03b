"""ERNIE-Image, whose layers have one name in the host, in published files and in diffusers.

Source: the class in diffusers (Apache-2.0), `models/transformers/transformer_ernie_image.py`.
"""

from __future__ import annotations

from .notation import Layout, same
from .record import Architecture

ARCHITECTURE = Architecture(
    layouts=(Layout(marks=("layers.*.adaLN_sa_ln", "final_linear"), diffusers=same("**")),),
    tokens={
        "x_embedder": "places",
        **dict.fromkeys((f"layers.*.{sublayer}" for sublayer in ("self_attention", "mlp")), "places, text"),
        "final_linear": "places, text",
    },
)
