"""OpenCLIP's text model, as the checkpoints of SD2 and SDXL hold it, under transformers' names.

Source of the correspondence: the conversion of original checkpoints in diffusers (Apache-2.0),
`diffusers/loaders/single_file_utils.py`. In OpenCLIP query, key and value are thirds of one matrix.
"""

from __future__ import annotations

import re

from ..maths.shapes import Shape

LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)$")
PLAIN = {
    "attn.out_proj.weight": "self_attn.out_proj",
    "mlp.c_fc.weight": "mlp.fc1",
    "mlp.c_proj.weight": "mlp.fc2",
}
FUSED = "attn.in_proj_weight"
PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
WIDE = "transformer.resblocks.0.attn.out_proj.weight"
"""A weight whose last dimension is the width of the encoder."""
EMBEDDING = {"token_embedding.weight": "text_model.embeddings.token_embedding"}


def slices(key: str, shape: Shape) -> list[tuple[str, tuple[int, int] | None]]:
    """The layers of transformers' text model that a weight of OpenCLIP holds: paths and rows (None: all).

    `key` is without the prefix that it has in a checkpoint. The result is empty if no layer is known
    for `key`, or if the shape of a fused weight is not known.
    """
    if key in EMBEDDING:
        return [(EMBEDDING[key], None)]
    match = LAYER.match(key)
    if match is None:
        return []
    layer, rest = f"text_model.encoder.layers.{match[1]}", match[2]
    if rest in PLAIN:
        return [(f"{layer}.{PLAIN[rest]}", None)]
    if rest != FUSED or not shape:
        return []
    width = shape[0] // 3
    return [(f"{layer}.{projection}", (n * width, (n + 1) * width)) for n, projection in enumerate(PARTS)]
