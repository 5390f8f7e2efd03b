"""Hugging Face diffusers: one file for a pipeline's UNet or transformer and text encoders."""

from .base import Dialect, Prefix

DIALECT = Dialect(
    name="diffusers",
    prefixes=(
        Prefix("unet.", "unet"),
        Prefix("transformer.", "unet"),
        Prefix("text_encoder.", "te", 1),
        Prefix("text_encoder_2.", "te", 2),
        Prefix("text_encoder_3.", "te", 3),
    ),
    suffixes={
        "lora.down.weight": "lora_down.weight",
        "lora.up.weight": "lora_up.weight",
        "lora_linear_layer.down.weight": "lora_down.weight",
        "lora_linear_layer.up.weight": "lora_up.weight",
    },
)
