"""XLabs' and USO's Flux adapters: attention processors with pairs called down and up."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .base import Dialect

PAIR = re.compile(r"\.processor\.((?:qkv|proj)_lora[12]?)\.(down|up)\.weight$")


def _recognises(keys: Mapping[str, object]) -> bool:
    return any(map(PAIR.search, keys))


DIALECT = Dialect(
    name="xlabs",
    prefixes=(),
    recognises=_recognises,
    rename=lambda key: PAIR.sub(r".processor.\1.lora_\2.weight", key),
)
