"""kohya-ss sd-scripts and musubi-tuner, whose suffixes are the algorithms' own names here."""

from __future__ import annotations

from .base import Dialect, Prefix

DIALECT = Dialect(
    name="kohya",
    prefixes=(
        Prefix("lora_unet_", "unet"),
        # VideoX-Fun (Wan Fun) joins with one more underscore.
        Prefix("lora_unet__", "unet"),
        Prefix("lora_te_", "te", 0),
        Prefix("lora_te1_", "te", 1),
        Prefix("lora_te2_", "te", 2),
        Prefix("lora_te3_", "te", 3),
        # Stable Cascade.
        Prefix("lora_prior_unet_", "unet"),
        Prefix("lora_prior_te_", "te", 0),
        # OFT networks have prefixes of their own.
        Prefix("oft_unet_", "unet"),
        Prefix("oft_te_", "te", 0),
        Prefix("oft_te1_", "te", 1),
        Prefix("oft_te2_", "te", 2),
    ),
)
