"""HiDream-O1, a Qwen3-VL with an image head, under the names that its class has in training.

Source of the correspondence: the official checkpoint's keys and the names of musubi-tuner (Apache-2.0), which
are the module names of transformers' `Qwen3VLForConditionalGeneration` (Apache-2.0): all layers are below
`model`. diffusers has no such model. HiDream I1 has other layers: see `hidream`.
"""

from __future__ import annotations

from .notation import Layout
from .record import Architecture

ARCHITECTURE = Architecture(
    layouts=(
        Layout(
            marks=("t_embedder1.mlp.0", "x_embedder.proj1", "final_layer2.linear"),
            others={"model.**": "**"},
        ),
    ),
    tokens={
        "x_embedder": "places",
        "language_model.layers.*": "text, places",
        "final_layer2.linear": "places",
    },
)
