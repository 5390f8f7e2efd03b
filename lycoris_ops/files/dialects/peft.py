"""Hugging Face PEFT: `save_pretrained`, with or without the adapter's name in the key."""

from __future__ import annotations

from .base import Dialect, Prefix

PAIR = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_down.weight",
    "lora_B.default.weight": "lora_up.weight",
    # Mochi's trainer writes bare parameters.
    "lora_A": "lora_down.weight",
    "lora_B": "lora_up.weight",
}
MAGNITUDE = (
    "lora_magnitude_vector",
    "lora_magnitude_vector.weight",
    "lora_magnitude_vector.default",
    "lora_magnitude_vector.default.weight",
    # ai-toolkit's name for the same.
    "magnitude",
)
NAMED = (
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("lora_embedding_A", "lora_embedding_B", "ia3_l", "boft_R", "boft_s"),
)
"""Bare parameters, which a file of a live model holds with the adapter's name behind them."""

DIALECT = Dialect(
    name="peft",
    prefixes=(
        Prefix("base_model.model."),
        Prefix("unet.base_model.model.", "unet"),
        Prefix("transformer.base_model.model.", "unet"),
        Prefix("text_encoder.base_model.model.", "te", 1),
    ),
    suffixes={
        **PAIR,
        **dict.fromkeys(MAGNITUDE, "dora_scale"),
        **{f"{name}.default": name for name in NAMED},
        "lora_B.default.bias": "lora_B.bias",
        "oft_R.default.weight": "oft_R.weight",
    },
)
