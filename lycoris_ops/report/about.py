"""What an adapter's file says of itself: trigger words, tags, the base model, dates and notes.

The keys of the metadata are those of kohya-ss' sd-scripts (`ss_`, library/train_util.py and train_network.py)
and of ModelSpec (`modelspec.`, https://github.com/Stability-AI/ModelSpec), which most tools write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, cast

from ..errors import LycorisError
from ..files.cache import TensorCache
from ..files.dtypes import FLOAT8, FLOATS
from ..files.json_text import parse_json
from ..maths.tensors import is_finite
from ..messages import either, phrase
from ..names.architectures import signals_of
from ..names.families import METADATA
from ..reading.adapter import Adapter
from .words import counted, ranks

TAGS = 200
"""The most tags that are kept."""
SAMPLED, SAMPLE = 3, 1 << 20
"""How many layers are searched for numbers that are not finite, and the most bytes of a tensor read there."""
WORDS = 12
"""The most trigger words that are taken from the tags."""
TRIGGERS = ("modelspec.trigger_phrase", "ss_trigger_words", "trigger_phrase", "trigger_words", "trigger_word")
FREQUENCY, FOLDERS = "ss_tag_frequency", "ss_dataset_dirs"
BASES = ("ss_sd_model_name", "ss_base_model_version", "modelspec.architecture", "base_model")
DATES = ("modelspec.date", "ss_training_finished_at", "ss_training_started_at")
NOTES = ("modelspec.description", "modelspec.usage_hint", "ss_training_comment")
FACTS = {
    "R-fact-title": "modelspec.title",
    "R-fact-author": "modelspec.author",
    "R-fact-license": "modelspec.license",
    "R-fact-resolution": "modelspec.resolution",
    "R-fact-steps": "ss_steps",
    "R-fact-epochs": "ss_epoch",
    "R-fact-pictures": "ss_num_train_images",
    "R-fact-clip-skip": "ss_clip_skip",
    "R-fact-network": "ss_network_module",
}
"""The code of each further fact's label, with its key in the metadata."""


@dataclass(frozen=True)
class About:
    """What the header of an adapter's file says of it."""

    kind: str
    """The kinds of its layers, such as `lokr`, the most frequent first."""
    rank: str
    """Their ranks in words; `full` where nothing is factored."""
    family: str
    """The model family, by the metadata or by the layers; "" where unknown."""
    families: tuple[str, ...]
    """The same families as a tuple, to compare with a model's."""
    signals: tuple[str, ...]
    """`video` and `audio` where it has layers for both; else ()."""
    base: str
    """The base model as the metadata name it; "" for none."""
    dialect: str
    size: int
    """Bytes of the file."""
    triggers: tuple[str, ...]
    """The trigger words that the metadata state; else the tags that are on every training picture."""
    stated: bool
    """Whether the metadata state the trigger words."""
    tags: tuple[tuple[str, int], ...]
    """Tags of the training pictures with the number of pictures, the most frequent first."""
    date: str
    notes: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    """Other metadata worth showing, as pairs of label and text."""
    problems: tuple[str, ...]
    """Metadata that cannot be read, and numbers that are not finite, in words."""


def about(adapter: Adapter) -> About:
    """What an adapter's file says of itself.

    Of its tensors only a sample is read, to notice a file whose numbers are not finite: those of the first,
    the middle and the last layer that have at most 1 MB each.
    """
    text = adapter.metadata
    problems: list[str] = []
    counts = _tables(text, FREQUENCY, problems)
    stated = [word for key in TRIGGERS for item in text.get(key, "").split(",") if (word := item.strip())]
    infos = list(adapter.info.values())
    of_family = METADATA if adapter.families else ()
    return About(
        kind=counted(info.algorithm.algorithm for info in infos),
        rank=ranks(info.rank for info in infos),
        family=either(adapter.families),
        families=adapter.families,
        signals=tuple(sorted({*signals_of(info.named.path for info in infos).values()}, reverse=True)),
        # An entry that only names the family would repeat it.
        base=next((text[key] for key in BASES if text.get(key) and key not in of_family), ""),
        dialect=adapter.dialect,
        size=adapter.file.size,
        triggers=tuple(dict.fromkeys(stated or _on_every_picture(counts, _tables(text, FOLDERS, problems)))),
        stated=bool(stated),
        tags=tuple(sum((Counter(tags) for tags in counts.values()), Counter[str]()).most_common(TAGS)),
        date=next((_date(text[key]) for key in DATES if text.get(key)), ""),
        notes=tuple(text[key] for key in NOTES if _says(text, key)),
        facts=tuple((phrase(code), text[key]) for code, key in FACTS.items() if _says(text, key)),
        problems=(*problems, *_not_finite(adapter)),
    )


def _not_finite(adapter: Adapter) -> list[str]:
    """A problem, in words, where the sampled numbers of a file are not finite or cannot be read."""
    layers = list(adapter.info.values())
    sampled = layers if len(layers) <= SAMPLED else [layers[0], layers[len(layers) // 2], layers[-1]]
    infos = adapter.file.tensors
    keys = [
        key
        for layer in sampled
        for key in layer.keys.values()
        if infos[key].dtype in (*FLOATS, *FLOAT8) and infos[key].end - infos[key].start <= SAMPLE
    ]
    try:
        read = adapter.file.read(keys, TensorCache(0), keep=False)
    except LycorisError as error:
        return [phrase("R-numbers-file-cannot-be-read", error=error)]
    key = next((key for key, tensor in read.items() if not is_finite(tensor)), None)
    if key is None:
        return []
    return [phrase("R-numbers-file-nan-or-infinite", key=key)]


def _says(text: Mapping[str, str], key: str) -> bool:
    # kohya-ss writes None for values that were not set.
    return text.get(key, "None") not in ("", "None")


def _date(said: str) -> str:
    """A date as written; seconds since 1970 become ISO 8601."""
    try:
        return datetime.fromtimestamp(float(said), tz=timezone.utc).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return said


def _tables(text: Mapping[str, str], key: str, problems: list[str]) -> dict[str, dict[str, int]]:
    """A JSON table of tables of whole numbers from the metadata; values of other types are skipped."""
    if key not in text:
        return {}
    try:
        table = parse_json(text[key])
        if not isinstance(table, dict):
            raise ValueError(phrase("R-not-table"))
    except ValueError as error:
        problems.append(phrase("R-cannot-be-read", key=key, error=error))
        return {}
    tables = cast("dict[str, Any]", table)
    return {
        name: {word: number for word, number in cast("dict[str, Any]", table).items() if type(number) is int}
        for name, table in tables.items()
        if isinstance(table, dict)
    }


def _on_every_picture(
    counts: Mapping[str, Mapping[str, int]], folders: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """The tags that every picture of a folder has; if a folder has only one tag, that one.

    They are in the order of the file, which is the order of the captions.
    """
    common: list[str] = []
    for name, tags in counts.items():
        pictures = folders.get(name, {}).get("img_count", 0)
        every = [tag.strip() for tag, count in tags.items() if pictures and count >= pictures]
        common += list(tags) if len(tags) == 1 else every
    return [tag for tag in common if tag][:WORDS]
