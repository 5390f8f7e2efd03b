"""The rows of Load LoRA / LyCORIS (rows), as they are written in a workflow.

A JSON table with the version of the form and a list of rows, in their order:

    {"version": 1, "rows": [
      {"on": true, "file": "style/ink.safetensors", "strength_model": 0.8, "rules": "mid = 0.5"}
    ]}

Only `file` must be there. `strength_clip` is `strength_model` where it is absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..lycoris_ops import LycorisError, parse_json
from .wires import LARGEST, STRENGTHS

VERSION = 1


@dataclass(frozen=True)
class Row:
    """One adapter. A row that is off is kept, and nothing of it is read."""

    file: str
    on: bool = True
    strength_model: float = 1.0
    strength_clip: float | None = None
    """The strength for the text encoder; None for `strength_model`."""
    rules: str = ""
    """Block rules of this adapter alone, as in Weight LyCORIS Blocks."""


EMPTY = json.dumps({"version": VERSION, "rows": []})
FIELDS = [field.name for field in fields(Row)]


def _strength(value: object) -> bool:
    # NaN compares as false.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


KINDS = {
    "file": (lambda value: isinstance(value, str), "a text"),
    "on": (lambda value: isinstance(value, bool), "true or false"),
    "strength_model": (_strength, f"a number, {STRENGTHS}"),
    "strength_clip": (_strength, f"a number, {STRENGTHS}, or nothing at all"),
    "rules": (lambda value: isinstance(value, str), "a text"),
}
"""What each field may hold: a test, and its description in words."""


def parse_rows(text: str) -> tuple[Row, ...]:
    """The rows that a text states; none for an empty text.

    Raises LycorisError, with the number of the row and the field, for a text that is not of this form or that
    a later version has written.
    """
    if not text.strip():
        return ()
    try:
        table = parse_json(text, unique=True)
    except ValueError as error:
        raise _wrong("are no JSON", got=str(error)) from None
    if not isinstance(table, dict) or not isinstance(table.get("rows"), list):
        raise _wrong("have another form", expected=EMPTY)
    version = table.get("version")
    # By type, since true is equal to 1.
    if type(version) is not int or version != VERSION:
        later = type(version) is int and version > VERSION
        raise LycorisError(
            "the rows are of a later version" if later else "the rows have no version that is known",
            key="version",
            got=json.dumps(version),
            expected=str(VERSION),
            hint="Update the LyCORIS nodes, or make the rows again" if later else None,
        )
    _check_names(table, ["version", "rows"], "the rows")
    return tuple(_row(number, row) for number, row in enumerate(table["rows"], start=1))


def _row(number: int, row: Any) -> Row:
    where = f"row {number}"
    if not isinstance(row, dict):
        raise LycorisError("a row is no table", key=where, got=type(row).__name__, expected='{"file": "..."}')
    _check_names(row, FIELDS, where)
    if "file" not in row:
        raise LycorisError("a row names no file", key=where, expected="the field `file`")
    for name, value in row.items():
        fits, expected = KINDS[name]
        if not fits(value):
            raise LycorisError(
                f"the field `{name}` cannot be used", key=where, got=json.dumps(value), expected=expected
            )
    return Row(**row)


def _check_names(table: Mapping[str, Any], known: list[str], where: str) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise LycorisError(f"the field `{unknown[0]}` is not known", key=where, expected=", ".join(known))


def _wrong(problem: str, **parts: str) -> LycorisError:
    return LycorisError(f"the rows {problem}", hint="An empty text is no rows", **parts)


def live(rows: Iterable[Row]) -> list[tuple[str, Row]]:
    """The rows that are on, each with what errors call it."""
    return [(f"row {number}", row) for number, row in enumerate(rows, start=1) if row.on]
