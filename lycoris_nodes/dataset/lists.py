"""Captions in lists and in JSON, as other tools keep them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ...lycoris_ops import TrainError, located, phrase
from .texts import LONGEST, alike, content_of, one_line, text_of

LISTS = re.compile(
    r"(?:.*_)?metadata(?:_.*)?\.jsonl|metadata\.csv|meta(?:data)?(?:_\w+)?\.json|captions\.json"
)
"""Names of lists, in lower case: `metadata.jsonl` and `.csv` of Hugging Face, JSONL of kohya-ss/musubi-tuner,
and the JSON that kohya-ss/sd-scripts call `in_json`, such as `meta_cap.json`."""
NAMES = ("file_name", "image_path", "video_path")
"""The columns for a picture's path: of Hugging Face, and of kohya-ss's tools."""
TEXTS = ("text", "caption", "prompt")
"""The columns for a caption. The first that is there counts."""
ALL = 16_000_000
"""The most bytes in all lists of a folder together."""
OPENED = 500_000
"""The most objects and arrays in a list."""
ANYWHERE = re.compile(r"/|[a-z]:/")
"""The beginning of a path that is not below the list."""
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError, csv.Error)
"""What the reading of a malformed list raises."""


def caption_of_json(path: Path) -> str | None:
    """The caption in the JSON of one picture: `caption` and `tags`, or `text`, or `prompt`.

    None for a JSON that has none, and for one that is longer than a caption may be. Raises TrainError for a
    file that is no JSON, and for a caption that is no text.
    """
    if path.stat().st_size > LONGEST:
        return None
    row = _parsed(path, text_of(content_of(path, LONGEST), path))
    if not isinstance(row, dict):
        return None
    try:
        return one_line(_caption(cast("dict[str, Any]", row)), path) or None
    except MALFORMED as error:
        raise TrainError("E-caption-not-text", file=str(path), got=str(error)) from error


@dataclass
class _List:
    """The captions of one list."""

    path: Path
    texts: dict[str, str] = field(default_factory=dict[str, str])
    """By the paths of pictures, with or without the ending."""
    by_name: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    """By the names of pictures that may be in any folder below. None where a name has several captions."""
    used: bool = False


@dataclass
class Lists:
    """The lists of captions in a folder and in those below it. The nearest list above a picture counts."""

    root: Path
    _found: dict[Path, list[_List]] = field(default_factory=dict[Path, list[_List]])
    _bytes: int = 0

    def add(self, folder: Path, names: list[str]) -> None:
        """Read the lists among the files of a folder.

        Raises TrainError for lists that are longer than `ALL`, or of another form.
        """
        for name in sorted(names):
            raw = content_of(folder / name, ALL - self._bytes, "list of captions")
            self._bytes += len(raw)
            self._found.setdefault(folder, []).append(_read(folder / name, raw))

    def caption_of(self, picture: Path) -> str:
        """The caption of a picture; "" where no list has one."""
        for folder in picture.parents:
            # Of the lists that kohya-ss/sd-scripts make one from another, the last has them all.
            for listing in reversed(self._found.get(folder, [])):
                known = [listing.texts.get(key) for key in _forms(str(picture))]
                known += [listing.by_name.get(key) for key in _forms(picture.name)]
                if text := next(filter(None, known), None):
                    listing.used = True
                    return text
            if folder == self.root:
                break
        return ""

    @property
    def unused(self) -> list[Path]:
        """The lists from which no caption was taken."""
        return [listing.path for each in self._found.values() for listing in each if not listing.used]


def _forms(name: str) -> tuple[str, str]:
    """A picture's name or path, and the same without its ending, as lists may have it."""
    return alike(name), alike(os.path.splitext(name)[0])


def _read(path: Path, raw: bytes) -> _List:
    text = text_of(raw, path)
    if (count := text.count("{") + text.count("[")) > OPENED:
        raise TrainError("E-captions-nested-too-deep", file=str(path), count=count, opened=OPENED)
    listing = _List(path)
    kind = path.suffix.lower()
    rows = {".jsonl": _lines, ".csv": _table, ".json": _entries}[kind](path, text)
    for name, caption in rows:
        path_told = name.replace("\\", "/")
        listing.texts[alike(str(path.parent / path_told))] = caption
        if kind == ".json" or ANYWHERE.match(path_told.lower()):
            key = alike(path_told.rpartition("/")[2])
            listing.by_name[key] = caption if listing.by_name.get(key, caption) == caption else None
    return listing


def _lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """The rows of a JSON object a line."""
    # Not `splitlines`: JSON texts may have other line separators in them.
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if not line.strip():
            continue
        try:
            with located(key=phrase("R-line", number=number)):
                yield _row(json.loads(line), path)
        except MALFORMED as error:
            raise _wrong(path, f"line {number}", line) from error


def _table(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """The rows of a table with commas, whose first line names the columns."""
    reader = csv.reader(io.StringIO(text, newline=""))
    header: list[str] = []
    try:
        header = [title.strip() for title in next(reader, [])]
        for cells in reader:
            if cells:
                yield _row(dict(zip(header, cells, strict=False)), path)
    except MALFORMED as error:
        raise _wrong(path, f"line {reader.line_num}", ", ".join(header), "file_name, text") from error


def _entries(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """The entries of one JSON object by the paths of pictures. Of any other JSON there are none."""
    table = _parsed(path, text)
    if not isinstance(table, dict):
        return
    rows = cast("dict[str, Any]", table)
    if not all(isinstance(row, dict | str) for row in rows.values()):
        return
    for name, row in rows.items():
        try:
            with located(key=name[:80]):
                yield name, one_line(row if isinstance(row, str) else _caption(row), path)
        except MALFORMED as error:
            expected = '{"cat": {"caption": "a cat", "tags": "cat, sofa"}}'
            raise _wrong(path, name[:80], str(error), expected) from error


def _row(row: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """The name and the caption of a row. Raises one of MALFORMED where it lacks one."""
    name = next((row[key] for key in NAMES if key in row), None)
    if not row.keys() & {*TEXTS, "tags"}:
        raise KeyError(TEXTS[0])
    return str.strip(cast("str", name)), one_line(_caption(row), path)


def _caption(row: Mapping[str, Any]) -> str:
    """The caption of a row: its text, and its tags where there is no other text than `caption`.

    Raises TypeError for one that is not a text.
    """
    key = next((key for key in TEXTS if row.get(key) is not None), "")
    texts = [row[key]] if key else []
    if key in ("caption", "") and row.get("tags") is not None:
        tags = row["tags"]
        texts += cast("list[Any]", tags) if isinstance(tags, list) else [tags]
    if other := next((text for text in texts if not isinstance(text, str)), None):
        raise TypeError(f"{key or 'tags'} is of the type {type(other).__name__}")
    return ", ".join(text for text in texts if text)


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TrainError("E-captions-json-unreadable", file=str(path), got=str(error)) from error


def _wrong(
    path: Path, key: str, got: str, expected: str = '{"file_name": "cat.png", "text": "a cat"}'
) -> TrainError:
    return TrainError("E-captions-line-unreadable", file=str(path), key=key, got=got[:80], expected=expected)
