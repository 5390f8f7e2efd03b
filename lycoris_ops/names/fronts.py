"""What a tool puts in front of every name: `pipe.dit.` of DiffSynth-Studio, `_orig_mod.` of a compiled model.

No list has all of these. A front is told from the names themselves: most of them share it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

WORDS = 8
"""The most words of a front. The longest known one, `Hunyuan_video_I2V_lora_`, has four."""
OF_ENCODER = re.compile(r"(?:^|[._])(?:te[0-9]*(?=[._])|text|clip|u?mt5|t5|bert|llama|encoder|llm)")
"""A word of a front that only names of text encoders' layers have."""


def shared_fronts(names: Collection[str], words: int = WORDS) -> list[str]:
    """The beginnings of one to `words` words that more than half of the names share, the shortest first.

    Words end with a dot, or in a name without dots with an underscore; a front includes its last separator.
    Each front begins with the one before it, because two different ones cannot both have more than half.
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
    """The front of a name that has one word more than its first `size` characters; "" where there is none."""
    end = name.find("." if "." in name else "_", size) + 1
    return name[:end] if end < len(name) else ""


def is_of_encoder(front: str) -> bool:
    """Whether a front says that the layers are a text encoder's."""
    return OF_ENCODER.search(front) is not None
