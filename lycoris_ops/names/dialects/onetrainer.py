"""OneTrainer's own prefixes, for transformers. Its other prefixes are the same as kohya-ss's."""

from .base import Dialect, Prefix

DIALECT = Dialect(
    name="onetrainer",
    prefixes=(Prefix("lora_transformer_", "unet"), Prefix("lora_te4_", "te", 4)),
)
