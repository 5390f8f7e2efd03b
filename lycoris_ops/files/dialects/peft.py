"""Hugging Face PEFT: `save_pretrained`, with or without the adapter's name in the key."""

from .base import Dialect, Prefix

DIALECT = Dialect(
    name="peft",
    prefixes=(
        Prefix("base_model.model."),
        Prefix("unet.base_model.model.", "unet"),
        Prefix("text_encoder.base_model.model.", "te", 1),
    ),
    suffixes={
        "lora_A.weight": "lora_down.weight",
        "lora_B.weight": "lora_up.weight",
        "lora_A.default.weight": "lora_down.weight",
        "lora_B.default.weight": "lora_up.weight",
        "lora_magnitude_vector": "dora_scale",
        "lora_magnitude_vector.weight": "dora_scale",
    },
)
