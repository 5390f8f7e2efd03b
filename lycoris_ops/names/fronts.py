"""Fronts, which tools put before every name: DiffSynth-Studio's `pipe.dit.`, or `_orig_mod.` of a compiled
model.

No list of them can be complete, so a front is recognised from the names: most of them share it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

WORDS = 8
"""The most words that a front may have. The longest known one, `Hunyuan_video_I2V_lora_`, has four."""
OF_ENCODER = re.compile(r"(?:^|[._])(?:te[0-9]*(?=[._])|text|clip|u?mt5|t5|bert|llama|encoder|llm)")
"""A word that only fronts of text encoders have."""


def shared_fronts(names: Collection[str], words: int = WORDS) -> list[str]:
    """The prefixes of one to `words` words that more than half of the names share, shortest first.

    Words end with a dot, or with an underscore if the name has no dots. A front includes its last separator.
    Each front extends the one before: more than half of the names cannot share two that differ.
    """
    fronts: list[str] = []
    sharing = list(names)
    while len(fronts) < words:
        known = fronts[-1] if fronts else ""
        longer = Counter(filter(None, (_longer(name, len(known)) for name in sharing)))
        front, count = longer.most_common(1)[0] if longer else ("", 0)
        if 2 * count <= len(names):
            break
        fronts.append(front)
        sharing = [name for name in sharing if name.startswith(front)]
    return fronts


def _longer(name: str, size: int) -> str:
    """The first `size` characters of a name and one more word; "" if there is none."""
    end = name.find("." if "." in name else "_", size) + 1
    return name[:end] if end < len(name) else ""


def is_of_encoder(front: str) -> bool:
    """Whether a front shows that the layers are a text encoder's."""
    return OF_ENCODER.search(front) is not None
