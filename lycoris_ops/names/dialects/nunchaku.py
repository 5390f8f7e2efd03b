"""Nunchaku's files, refused by name: their factors are packed in the order of its kernels' memory.

Their keys are `<path>.lora_down` and `lora_up`, with `mlp_fc1`, `qkv_proj` and the like for layers.
Source: `lora/flux/nunchaku_converter.py` and `lora/flux/utils.py` of Nunchaku (Apache-2.0).
"""

from __future__ import annotations

import re

from ...errors import FileFormatError
from .base import Dialect, Opened

PACKED = re.compile(
    r"\.(?:mlp_(?:context_)?fc[12]|qkv_proj(?:_context)?|out_proj(?:_context)?)\.lora_(?:down|up)$"
)


def _opened(read: Opened) -> Opened:
    for key in read.file.tensors:
        if key.endswith((".lora_down", ".lora_up")) and PACKED.search(key):
            raise FileFormatError("E-nunchaku-not-read", file=read.file.path, key=key)
    return read


DIALECT = Dialect(name="nunchaku", prefixes=(), opened=_opened)
