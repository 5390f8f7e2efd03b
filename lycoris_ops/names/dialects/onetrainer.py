"""OneTrainer's own form for transformers; its other prefixes are those of kohya-ss."""

from .base import Dialect, Prefix

DIALECT = Dialect(
    name="onetrainer",
    prefixes=(Prefix("lora_transformer_", "unet"), Prefix("lora_te4_", "te", 4)),
)
