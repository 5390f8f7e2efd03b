"""Ideogram 4: the original layout beside the names of diffusers.

Source of the correspondence: diffusers (Apache-2.0), `_convert_non_diffusers_ideogram4_lora_to_diffusers`
in `loaders/lora_conversion_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...algebra import Shape
from .base import Places
from .patterns import following, gathered, renamed, split_qkv

ATTENTION = "layers.*.attention"
QKV = (f"{ATTENTION}.to_q", f"{ATTENTION}.to_k", f"{ATTENTION}.to_v")


def diffusers(shapes: Mapping[str, Shape]) -> dict[str, Places]:
    """Nothing for another architecture."""
    if not {"embed_image_indicator", "layers.0.attention.qkv"} <= shapes.keys():
        return {}
    output = renamed(shapes, {f"{ATTENTION}.o": f"{ATTENTION}.to_out.0"})
    return gathered(shapes, output, split_qkv(shapes, f"{ATTENTION}.qkv", f"{ATTENTION}.o", QKV))


aliases = following(diffusers)
