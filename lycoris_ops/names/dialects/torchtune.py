"""torchtune's modules and others that call LoRA's two linear layers `lora_a` (r, I) and `lora_b` (O, r)."""

from __future__ import annotations

from .base import Dialect

DIALECT = Dialect(
    name="torchtune",
    prefixes=(),
    suffixes={
        "lora_a.weight": "lora_down.weight",
        "lora_b.weight": "lora_up.weight",
        "lora_b.bias": "lora_B.bias",
    },
)
