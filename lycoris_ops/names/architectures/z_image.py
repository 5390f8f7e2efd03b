"""Z-Image: maps diffusers' names to ComfyUI's layout, which is Lumina 2's with another modulation.

Source of the correspondence: diffusers (Apache-2.0), `convert_z_image_transformer_checkpoint_to_diffusers`
in `loaders/single_file_utils.py`. The original code and musubi-tuner use diffusers' names too.
"""

from __future__ import annotations

from .notation import Layout, same, split, under
from .record import Architecture, Family, Size

QKV = ("attention.to_q", "attention.to_k", "attention.to_v")
BLOCK = {
    **split("attention.qkv", *QKV, output="attention.out"),
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
    **same("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0"),
    **same("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"),
}
DIFFUSERS = {
    **same("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.0", "cap_embedder.1"),
    **same("x_pad_token", "cap_pad_token"),
    # diffusers names these layers by the size of a patch in space and in time. There is only the size 2-1.
    "all_x_embedder.2-1": "x_embedder",
    **under("noise_refiner.*", "noise_refiner.*", BLOCK),
    **under("context_refiner.*", "context_refiner.*", BLOCK),
    **under("layers.*", "layers.*", BLOCK),
    "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
}

ARCHITECTURE = Architecture(
    order=4,
    layouts=(
        Layout(
            marks=("cap_embedder.1", "layers.*.attention.qkv", "layers.*.adaLN_modulation.0"),
            diffusers=DIFFUSERS,
            # diffusers cannot fuse this model's attention, so LoKr has the same names as LoRA.
            lokr=DIFFUSERS,
        ),
    ),
    tokens={
        "x_embedder": "places",
        "noise_refiner.*.adaLN_modulation": "text",
        "layers.*.adaLN_modulation": "text",
        "noise_refiner.*": "places",
        "layers.*": "text, places",
        "final_layer.linear": "text, places",
    },
    families=(
        Family(
            "Z-Image",
            said=r"z-?_?image",
            width=(r"layers_\d+_attention_(qkv|to_q|to_k)$", 3840),
            sizes=(Size({"layers": 30}, "Z-IMAGE"),),
        ),
    ),
)
