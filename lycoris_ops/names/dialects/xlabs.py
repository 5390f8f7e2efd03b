"""XLabs' and USO's Flux adapters: attention processors with pairs called down and up."""

from __future__ import annotations

import re

from .base import Dialect, by_any

PAIR = re.compile(r"\.processor\.((?:qkv|proj)_lora[12]?)\.(down|up)\.weight$")


DIALECT = Dialect(
    name="xlabs",
    prefixes=(),
    recognises=by_any(PAIR),
    rename=lambda key: PAIR.sub(r".processor.\1.lora_\2.weight", key),
)
