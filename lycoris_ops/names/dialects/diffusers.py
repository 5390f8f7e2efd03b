"""Hugging Face diffusers: one file for a pipeline's UNet or transformer and text encoders.

There are three generations of suffixes: PEFT's, `.lora.down.weight`, and those of attention processors
(`attn1.processor.to_q_lora.down.weight`, where `to_out` stands for `to_out.0`). PEFT's are written, except
for UNets, which get the older two: diffusers reads these as well, and ComfyUI knows the attention of UNets
under no other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .base import Dialect, Prefix

UNET = "unet."
FACTORS = {"lora_A.weight": "lora.down.weight", "lora_B.weight": "lora.up.weight"}
"""PEFT's suffixes, to those that are written for a UNet."""
ATTENTION = re.compile(r"\.(to_q|to_k|to_v|to_out)(?:\.0)?\.lora\.(down|up)\.weight$")
PROCESSOR = re.compile(r"\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$")


def _rename(key: str) -> str:
    def plain(match: re.Match[str]) -> str:
        layer = "to_out.0" if match[1] == "to_out" else match[1]
        return f".{layer}.lora_{match[2]}.weight"

    return PROCESSOR.sub(plain, key)


def spelled(layer: str, suffix: str) -> str:
    """The key under which a tensor is written. suffix: PEFT's name of the tensor."""
    if not layer.startswith(UNET) or suffix not in FACTORS:
        return f"{layer}.{suffix}"
    return ATTENTION.sub(r".processor.\1_lora.\2.weight", f"{layer}.{FACTORS[suffix]}")


def _recognises(keys: Mapping[str, object]) -> bool:
    return any(map(PROCESSOR.search, keys))


DIALECT = Dialect(
    name="diffusers",
    prefixes=(
        Prefix(UNET, "unet"),
        Prefix("transformer.", "unet"),
        # Ideogram 4 has a second transformer, for the negative side of the guidance. diffusers reads this
        # prefix in `_convert_non_diffusers_ideogram4_lora_to_diffusers` (Apache-2.0).
        Prefix("conditional_transformer.", "unet"),
        # Stable Cascade.
        Prefix("prior.", "unet"),
        Prefix("text_encoder.", "te", 1),
        Prefix("text_encoder_2.", "te", 2),
        Prefix("text_encoder_3.", "te", 3),
        Prefix("text_encoder_4.", "te", 4),
    ),
    suffixes={
        "lora.down.weight": "lora_down.weight",
        "lora.up.weight": "lora_up.weight",
        "lora.A.weight": "lora_down.weight",
        "lora.B.weight": "lora_up.weight",
        "lora.A": "lora_down.weight",
        "lora.B": "lora_up.weight",
        "lora_linear_layer.down.weight": "lora_down.weight",
        "lora_linear_layer.up.weight": "lora_up.weight",
    },
    recognises=_recognises,
    rename=_rename,
)
