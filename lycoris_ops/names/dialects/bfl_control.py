"""The control adapters of Black Forest Labs for Flux.

Names have no prefix, norms are stored as new values, not as changes, and `img_in` has more inputs than in
Flux itself.

Source: the files of FLUX.1-Depth-dev-lora and FLUX.1-Canny-dev-lora, as diffusers (Apache-2.0) converts
them in `loaders/lora_conversion_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .base import Dialect

NORM = re.compile(r"_norm\.scale$")


def _recognises(keys: Mapping[str, object]) -> bool:
    return "img_in.lora_A.weight" in keys and any(NORM.search(key) for key in keys)


DIALECT = Dialect(
    name="bfl control",
    prefixes=(),
    recognises=_recognises,
    rename=lambda key: NORM.sub("_norm.set_weight", key),
    enlarged=("img_in",),
)
