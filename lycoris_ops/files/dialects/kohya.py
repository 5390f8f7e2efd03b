"""kohya-ss sd-scripts, whose suffixes are the algorithms' own names here."""

from __future__ import annotations

from ...algorithms import ALGORITHMS
from .base import Dialect, Prefix

DIALECT = Dialect(
    name="kohya",
    prefixes=(
        Prefix("lora_unet_", "unet"),
        Prefix("lora_te_", "te", 0),
        Prefix("lora_te1_", "te", 1),
        Prefix("lora_te2_", "te", 2),
        Prefix("lora_te3_", "te", 3),
    ),
    suffixes={name: name for kind in ALGORITHMS.values() for name in kind.suffixes()},
)
