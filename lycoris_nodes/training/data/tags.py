"""The tags and the trigger word of captions, recorded in a trained file so that lists of files find it.

The keys are those of kohya-ss/sd-scripts (`ss_tag_frequency`, `ss_dataset_dirs`) and of the specification
https://github.com/Stability-AI/ModelSpec (`modelspec.trigger_phrase`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

CAPTION, TRIGGER = "lycoris_caption", "lycoris_trigger"
"""The settings of a conditioning from LyCORIS Training Pictures that hold its text and its trigger word."""
PICTURES = "pictures"
"""The name of the only folder in the metadata: the real one may be private."""


def metadata_of_captions(conditionings: Sequence[Sequence[Any]]) -> dict[str, str]:
    """The entries; {} for conditionings from other nodes, which do not keep their texts.

    A tag is what stands between two commas. It is counted once in each conditioning.
    """
    said: list[Mapping[str, Any]] = [row[1] for rows in conditionings for row in rows if CAPTION in row[1]]
    counts = Counter(
        tag
        for settings in said
        for tag in dict.fromkeys(word.strip() for word in settings[CAPTION].split(","))
        if tag
    )
    triggers = dict.fromkeys(settings[TRIGGER] for settings in said if settings.get(TRIGGER))
    entries = {"modelspec.trigger_phrase": ", ".join(triggers)} if triggers else {}
    if counts:
        entries["ss_tag_frequency"] = json.dumps({PICTURES: counts})
        entries["ss_dataset_dirs"] = json.dumps({PICTURES: {"n_repeats": 1, "img_count": len(said)}})
    return entries
