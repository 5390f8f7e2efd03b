"""Recognise a model in diffusers' own layout by its keys."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..maths.shapes import Shape
from .architectures import recognise

UNET, TRANSFORMER = "unet", "transformer"
ENCODERS = "text_encoder"
"""The beginning of the keys of text encoders in a pipeline."""
QUERY = re.compile(r"(?:(?:single_)?transformer_blocks|blocks|layers)\.\d+\..*\.(?:to_q|to_k|to_qkv)\.weight")
"""A projection in a block of a diffusers transformer."""
SIDES = ("down_blocks.", "up_blocks.")
"""The two sides of a diffusers UNet. In a VAE they are inside its encoder and decoder."""


def diffusers_component(shapes: Mapping[str, Shape]) -> tuple[str, str] | None:
    """The component of a pipeline that a model is, and the prefix of its keys.

    That is ("unet", "unet.") for the keys of a UNet with its prefix, and ("transformer", "") for those of a
    transformer without one. None for keys in another layout, even of a model that diffusers has too.
    """
    keys = [key for key in shapes if not key.startswith(ENCODERS)]
    if not keys:
        return None
    component = next(
        (prefix for prefix in (UNET, TRANSFORMER) if all(key.startswith(f"{prefix}.") for key in keys)), None
    )
    front = f"{component}." if component else ""
    paths = {key[len(front) :]: shapes[key] for key in keys}
    if all(any(path.startswith(side) for path in paths) for side in SIDES):
        kind = UNET
    elif any(map(QUERY.match, paths)):
        kind = TRANSFORMER
    else:
        return None
    if component not in (None, kind) or recognise(
        {path.removesuffix(".weight"): s for path, s in paths.items()}
    ):
        return None
    return kind, front
