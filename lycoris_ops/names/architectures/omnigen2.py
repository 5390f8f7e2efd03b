"""OmniGen2, and Boogu, which has further blocks. Their layers have the same names in host and files."""

from __future__ import annotations

from .notation import Layout
from .record import Architecture

DOUBLE = "double_stream_layers.*"
JOINT = f"{DOUBLE}.img_instruct_attn"

ARCHITECTURE = Architecture(
    layouts=(
        Layout(marks=("ref_image_patch_embedder", "layers.*.attn.to_q")),
        Layout(marks=("ref_image_patch_embedder", f"{JOINT}.processor.img_to_q")),
    ),
    # The tokens of reference pictures come between those of the text and the picture.
    tokens={
        "x_embedder": "places",
        **dict.fromkeys((f"noise_refiner.*.{sublayer}" for sublayer in ("attn", "feed_forward")), "places"),
        f"{JOINT}.to_out": "text, places",
        **dict.fromkeys(
            (
                *(f"{JOINT}.processor.img_{end}" for end in ("to_q", "to_k", "to_v", "out")),
                *(f"{DOUBLE}.{sublayer}" for sublayer in ("img_self_attn", "img_feed_forward")),
            ),
            "places",
        ),
        **dict.fromkeys(
            (
                *(f"layers.*.{sublayer}" for sublayer in ("attn", "feed_forward")),
                *(f"single_stream_layers.*.{sublayer}" for sublayer in ("attn", "feed_forward")),
                "norm_out.linear_2",
            ),
            "text, places",
        ),
    },
)
