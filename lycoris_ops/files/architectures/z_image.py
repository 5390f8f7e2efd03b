"""Z-Image: ComfyUI's layout, Lumina 2's with modulation of its own, beside the names of diffusers.

Source of the correspondence: diffusers (Apache-2.0), `convert_z_image_transformer_checkpoint_to_diffusers`
in `loaders/single_file_utils.py`. Those names are the original ones too, and those of musubi-tuner.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...algebra import Shape
from .base import Places
from .patterns import following, gathered, renamed, split_qkv

TABLE = {
    "*.*.attention.out": "*.*.attention.to_out.0",
    "*.*.attention.q_norm": "*.*.attention.norm_q",
    "*.*.attention.k_norm": "*.*.attention.norm_k",
    # Named by the size of a patch in space and in time: the one size that there is.
    "x_embedder": "all_x_embedder.2-1",
    "final_layer": "all_final_layer.2-1",
}
QKV = ("*.*.attention.to_q", "*.*.attention.to_k", "*.*.attention.to_v")


def diffusers(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """Nothing for another architecture."""
    if not {"cap_embedder.1", "layers.0.attention.qkv", "layers.0.adaLN_modulation.0"} <= shapes.keys():
        return {}
    qkv = split_qkv(shapes, "*.*.attention.qkv", "*.*.attention.out", QKV)
    return gathered(shapes, renamed(shapes, TABLE), qkv)


aliases = following(diffusers)
