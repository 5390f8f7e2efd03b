"""Names as the host itself writes them: the path in its own module tree.

Distilled Wan models of lightx2v call the change of a block's modulation parameter `diff_m`.
"""

from __future__ import annotations

import re

from .base import Dialect, Prefix, Write, by_any
from .pipelines import UNET, Components
from .plain import encode

MODULATION = re.compile(r"\.diff_m$")


def _prefix(component: str, components: Components) -> str:
    return "diffusion_model." if component == UNET else f"text_encoders.{component}.transformer."


DIALECT = Dialect(
    name="comfy",
    prefixes=(
        Prefix("diffusion_model.", "unet"),
        Prefix("model.diffusion_model.", "unet"),
        Prefix("text_encoders.", "te"),
    ),
    recognises=by_any(MODULATION),
    rename=lambda key: MODULATION.sub(".modulation.diff", key),
    write=Write(_prefix, order=2, tensors=encode, embeddings=True),
)
