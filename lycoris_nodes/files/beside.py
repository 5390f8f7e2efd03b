"""The files beside an adapter: preview pictures and clips, and the tables that model managers wrote.

A file belongs to an adapter if it has the adapter's name with another ending. A link that leads out of the
adapter's folder is ignored: it may point to any file on the machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from ...lycoris_ops import parse_json, phrase

_KINDS = ("png", "jpg", "jpeg", "webp", "gif", "avif")
PICTURES = tuple(f"{mark}.{kind}" for mark in (".preview", "") for kind in _KINDS)
"""Endings that model managers give to previews, in place of the adapter's own."""
CLIPS = {f"{mark}.{kind}": f"video/{kind}" for mark in (".preview", "") for kind in ("mp4", "webm")}
"""The same for clips, each with its media type."""
NOTES = (".metadata.json", ".civitai.info", ".cm-info.json", ".json")
"""The same for JSON tables: of ComfyUI-Lora-Manager, Civitai Helper, Stability Matrix and A1111."""
OWN_NOTES = ".rgthree-info.json"
"""rgthree's ending. It follows the adapter's whole name, `.safetensors` included."""
MAX_NOTES = 4 << 20
"""The largest table that is read, in bytes."""
TITLES = ("model_name", "modelname", "usertitle")
BASES = ("base_model", "basemodel", "sd version")
WORDS = ("trainedwords", "activation text")
TAGS = ("tags", "usertags")


class Beside(NamedTuple):
    """What the tables beside a file say about it. Of several titles or bases, the first counts."""

    title: str = ""
    base: str = ""
    words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    favourite: bool = False
    problems: tuple[str, ...] = ()
    """A sentence on each table that cannot be read."""


def files_beside(
    path: str, endings: Sequence[str], there: Callable[[str], bool] = os.path.isfile
) -> Iterator[str]:
    """The files beside an adapter with these endings; `there` says whether a file exists."""
    stem = os.path.splitext(path)[0]
    home = os.path.realpath(os.path.dirname(path))
    for ending in endings:
        beside = (path if ending == OWN_NOTES else stem) + ending
        if there(beside) and Path(os.path.realpath(beside)).is_relative_to(home):
            yield beside


def notes_beside(path: str, there: Callable[[str], bool] = os.path.isfile) -> Beside:
    """What the tables beside an adapter say about it."""
    tables: list[Mapping[str, Any]] = []
    problems: list[str] = []
    for beside in files_beside(path, (*NOTES, OWN_NOTES), there):
        try:
            tables += _tables(beside)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            problems.append(phrase("R-cannot-be-read-2", basename=os.path.basename(beside), why=why))
    return Beside(
        title=next(_texts(tables, TITLES), ""),
        base=next(_texts(tables, BASES), ""),
        words=_parts(_texts(tables, WORDS)),
        tags=_parts(_texts(tables, TAGS)),
        favourite=any(table.get("favorite") is True for table in tables),
        problems=tuple(problems),
    )


def trigger_words(said: Sequence[str], stated: bool, notes: Beside) -> tuple[str, ...]:
    """The trigger words that an adapter or a table beside it states; else the words that its tags suggest."""
    return tuple(dict.fromkeys((*(said if stated else ()), *notes.words) or said))


def _tables(path: str) -> list[Mapping[str, Any]]:
    """A table and the inner tables about the same file, with their keys in lower case."""
    with open(path, "rb") as file:
        data = file.read(MAX_NOTES + 1)
    if len(data) > MAX_NOTES:
        raise ValueError(phrase("R-has-more-than-bytes", max_notes=MAX_NOTES))
    data_read = parse_json(data.removeprefix(b"\xef\xbb\xbf"))
    if not isinstance(data_read, dict):
        raise ValueError(phrase("R-not-table"))
    table = _small(data_read)
    inner = [_small(table[key]) for key in ("civitai", "model") if isinstance(table.get(key), dict)]
    deep = [_small(version["model"]) for version in inner if isinstance(version.get("model"), dict)]
    # The name of a version or of a file says little, so the title is the model's name.
    for model in (*deep, *inner):
        if "type" in model and "name" in model:
            table.setdefault(TITLES[0], model["name"])
    return [table, *inner, *deep]


def _small(table: Any) -> dict[str, Any]:
    return {str(key).lower(): value for key, value in cast("dict[Any, Any]", table).items()}


def _texts(tables: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Iterator[str]:
    """The texts under these keys: a value may be a text, a list of texts or a list of tables."""
    for table in tables:
        for key in keys:
            value = table.get(key)
            for each in value if isinstance(value, list) else [value]:
                said = (each.get("word") or each.get("name")) if isinstance(each, dict) else each
                if isinstance(said, str) and said.strip():
                    yield said.strip()


def _parts(texts: Iterable[str]) -> tuple[str, ...]:
    """The parts of texts between commas, without repetitions."""
    words = (word.strip() for text in texts for word in text.split(","))
    return tuple(dict.fromkeys(word for word in words if word))
