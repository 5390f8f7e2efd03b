"""HiDream-O1, a Qwen3-VL with an image head, under the names that its class has in training.

Source of the correspondence: the official checkpoint's keys and the names of musubi-tuner (Apache-2.0),
which has them from the modules of transformers' `Qwen3VLForConditionalGeneration` (Apache-2.0): all layers
are below `model`. diffusers has no such model. HiDream I1 is in `alike`.
"""

from __future__ import annotations

from .notation import Layout, names_of

diffusers, aliases = names_of(
    Layout(
        marks=("t_embedder1.mlp.0", "x_embedder.proj1", "final_layer2.linear"),
        others={"model.**": "**"},
    )
)
