"""The rows of Load LoRA / LyCORIS (rows), as they are written in a workflow.

A JSON table with the version of the format and a list of rows, in their order:

    {"version": 1, "rows": [
      {"on": true, "file": "style/ink.safetensors", "strength_model": 0.8, "rules": "mid = 0.5"}
    ]}

Only `rows` and the `file` of each row are required. `strength_clip` defaults to `strength_model`, and
`video` and `audio` are factors of the strength for the picture and for the sound. A number may be a text, as
the user typed it. For a model with two experts, `low_noise` is the file for the low-noise expert, and `file`
for the other. The formats of `foreign.py` are read too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...lycoris_ops import LycorisError, Phrase, located, parse_json
from ..files.loras import listed_once
from .foreign import check_count, rows_of, tags_in, tuples_in
from .typed import read_number

VERSION = 1
MOST_TEXT = 1 << 20
"""The most characters of a text."""
LARGEST = 100.0
"""The largest absolute strength that is accepted."""
STRENGTHS = f"{-LARGEST:g} to {LARGEST:g}"
"""The accepted strengths, in words."""


@dataclass(frozen=True)
class Row:
    """One adapter. A row that is off is kept, but its file is not read."""

    file: str
    on: bool = True
    strength_model: float = 1.0
    strength_clip: float | None = None
    """The strength for the text encoder; if None, `strength_model`."""
    rules: str = ""
    """Block rules of this adapter alone, as in Weight LyCORIS Blocks."""
    low_noise: str = ""
    """For a model with two experts: the file for low noise, while `file` is for high noise; "" for none."""
    video: float = 1.0
    audio: float = 1.0
    """Factors of the strength of layers for the picture, and for the sound."""

    @property
    def files(self) -> tuple[str, ...]:
        """The row's file, or both files of a pair."""
        return (self.file, self.low_noise) if self.low_noise else (self.file,)

    @property
    def all_rules(self) -> str:
        """Its block rules, and its factors as such."""
        factors = [f"{name} = *{getattr(self, name)}" for name in SIGNALS if getattr(self, name) != 1]
        return "\n".join([self.rules, *factors])


EMPTY = json.dumps({"version": VERSION, "rows": []})
FIELDS = [field.name for field in fields(Row)]
SIGNALS = ("video", "audio")
STRENGTH_FIELDS = ("strength_model", "strength_clip", *SIGNALS)


def _strength(value: object) -> bool:
    # NaN compares as false.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


KINDS = {
    "file": (lambda value: isinstance(value, str), "a text"),
    "on": (lambda value: isinstance(value, bool), "true or false"),
    "strength_model": (_strength, f"a number, {STRENGTHS}"),
    "strength_clip": (_strength, f"a number, {STRENGTHS}, or nothing at all"),
    "rules": (lambda value: isinstance(value, str), "a text"),
    "low_noise": (lambda value: isinstance(value, str), "a text"),
    **dict.fromkeys(SIGNALS, (_strength, f"a number, {STRENGTHS}")),
}
"""What each field may hold: a test, and its description in words."""


def parse_rows(text: str) -> tuple[Row, ...]:
    """Parse the rows of a text; an empty text has none.

    Raises LycorisError, with the row number and the field, for a text in an unknown format or from a later
    version.
    """
    rows: list[Row] = []
    for index, table in enumerate(row_tables(text)):
        with located(place=row_name(index)):
            rows.append(row_of(table))
    return tuple(rows)


@listed_once()
def row_tables(text: str) -> list[Any]:
    """The rows of a text, not yet checked.

    Raises LycorisError for a text in an unknown format or from a later version.
    """
    if not text.strip():
        return []
    if len(text) > MOST_TEXT:
        raise LycorisError("E-rows-text-too-long", count=len(text), most_text=MOST_TEXT)
    try:
        table = parse_json(text, unique=True)
    except ValueError as error:
        rows = tags_in(text) or tuples_in(text)
        if not rows:
            raise LycorisError("E-rows-neither-json-nor-tags", got=str(error), expected=EMPTY) from None
        return rows
    if isinstance(table, dict) and isinstance(table.get("rows"), list):
        return _own(table)
    rows = rows_of(table, FIELDS) or tags_in(table if isinstance(table, str) else text)
    if not rows:
        raise LycorisError("E-rows-of-another-form", expected=EMPTY)
    return rows


def _own(table: dict[str, Any]) -> list[Any]:
    """The rows of a table in our own format."""
    version = table.get("version", VERSION)
    # Compare the type too: True equals 1.
    if type(version) is not int or version != VERSION:
        later = type(version) is int and version > VERSION
        raise LycorisError(
            "E-rows-of-later-version" if later else "E-rows-version-unknown",
            key="version",
            got=json.dumps(version),
            expected=str(VERSION),
        )
    with located(place=Phrase("R-the-rows")):
        _check_names(table, ["version", "rows"])
    check_count(len(table["rows"]))
    return table["rows"]


def row_name(index: int) -> Phrase:
    """The name of a row in errors: its number, counted from 1."""
    return Phrase("R-row", {"number": index + 1})


def row_of(table: Any) -> Row:
    """The row of a table. Raises LycorisError for a table that is no row."""
    if not isinstance(table, dict):
        raise LycorisError("E-row-not-a-table", got=type(table).__name__)
    _check_names(table, FIELDS)
    if "file" not in table:
        raise LycorisError("E-row-without-file")
    values = {name: _typed(name, value) for name, value in table.items()}
    for name, value in values.items():
        fits, expected = KINDS[name]
        if not fits(value):
            got = json.dumps(table[name], ensure_ascii=False)
            raise LycorisError("E-row-field-unusable", name=name, got=got, expected=expected)
    return Row(**values)


def _typed(name: str, value: Any) -> Any:
    """The value of a field. A strength that is the text of a number becomes that number."""
    number = read_number(value) if name in STRENGTH_FIELDS and isinstance(value, str) else None
    return value if number is None else number


def _check_names(table: Mapping[str, Any], known: list[str]) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise LycorisError("E-row-field-unknown", unknown=unknown[0], expected=", ".join(known))


def row_table(row: Row) -> dict[str, Any]:
    """A row as written to a workflow, without unneeded fields."""
    table = {"on": row.on, "file": row.file, "strength_model": row.strength_model}
    table |= {name: getattr(row, name) for name in SIGNALS if getattr(row, name) != 1}
    if row.strength_clip not in (None, row.strength_model):
        table["strength_clip"] = row.strength_clip
    if row.low_noise:
        table["low_noise"] = row.low_noise
    return {**table, "rules": row.rules} if row.rules.strip() else table


def live(rows: Iterable[Row]) -> list[tuple[int, Row]]:
    """The rows that are on, each with its index."""
    return [(index, row) for index, row in enumerate(rows) if row.on]
