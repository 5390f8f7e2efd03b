"""The fields of an adapter's configuration, read from JSON with their types and bounds checked."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any, cast

from ..errors import FileFormatError
from ..files.bounds import MAX_JSON
from ..files.json_text import parse_json
from ..messages import Phrase, phrase

MOST_COMPONENTS = 64
"""The most components of a pipeline that one metadata entry may describe. Pipelines have up to five."""
SHOWN = 80
"""The most characters of a value from a file that an error shows."""
SHORT = reprlib.Repr()
"""Writes values on one line, without control characters, and cut off where they are long or deeply nested."""
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = SHOWN
HINT = Phrase("R-restore-configuration")


def table_of(path: str) -> dict[str, Any]:
    """The table in a configuration's file. Raises FileFormatError where it cannot be read, or holds none."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_JSON + 1)
    except OSError as error:
        raise FileFormatError("E-config-file-unreadable", file=path, got=str(error.strerror)) from error
    # Some editors put a byte order mark in front, which utf-8-sig removes.
    return parsed(data.decode("utf-8-sig", errors="replace"), path)


def parsed(text: str, file: str) -> dict[str, Any]:
    """The table that a JSON text holds. Raises FileFormatError where it holds none."""
    try:
        table: Any = parse_json(text)
    except ValueError as error:
        raise unreadable(
            phrase("R-not-json"), file, got=str(error)[:SHOWN], expected="a JSON table"
        ) from error
    if not isinstance(table, dict):
        raise unreadable(phrase("R-not-table"), file, got=_shown(table), expected="a JSON table")
    return cast("dict[str, Any]", table)


def unreadable(
    why: str,
    file: str,
    *,
    key: str | None = None,
    got: str | None = None,
    expected: str | None = None,
    hint: str | Phrase = HINT,
) -> FileFormatError:
    """The error for a configuration that cannot be followed."""
    return FileFormatError(
        "E-peft-configuration-unusable", file=file, key=key, why=why, got=got, expected=expected, hint=hint
    )


class Fields:
    """The fields of one configuration by name.

    Each method returns one field's value and raises FileFormatError, with file and field, for a value of
    another type or outside of its bounds. A field that is missing or null has the value `default`; without a
    default the field is required.
    """

    def __init__(self, table: Mapping[str, Any], file: str, prefix: str = "") -> None:
        self.file = file
        self._table, self._prefix = table, prefix
        """`prefix` comes before each name in the file. Errors show it."""

    def __contains__(self, name: str) -> bool:
        return self._table.get(name) is not None

    @property
    def stated(self) -> Mapping[str, Any]:
        """All fields that are not null, with unchecked values."""
        return {name: value for name, value in self._table.items() if value is not None}

    def number(self, name: str, default: float | None = None, *, low: float = -math.inf) -> float:
        """A finite number of at least `low`."""
        return self._number(name, self._value(name, default), low)

    def integer(self, name: str, default: int | None = None, *, low: int, high: int) -> int:
        """A whole number from `low` to `high`, perhaps written as 8.0."""
        return self._integer(name, self._value(name, default), low, high)

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.error(name, phrase("R-not-flag"), value, phrase("R-true-or-false"))
        return value

    def text(self, name: str, default: str) -> str:
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.error(name, phrase("R-not-text"), value, "a text")
        return value

    def texts(self, name: str) -> tuple[str, ...] | str:
        """A text or a list of texts; () where it is missing."""
        value: Any = self._value(name, ())
        if isinstance(value, str):
            return value
        if not isinstance(value, list | tuple) or not all(
            isinstance(text, str) for text in cast("list[Any]", value)
        ):
            raise self.error(name, phrase("R-not-list-texts"), value, phrase("R-list-texts-or-one-text"))
        return tuple(cast("list[str]", value))

    def numbers(self, name: str) -> dict[str, float]:
        """A table of finite numbers; {} where it is missing."""
        return {key: self._number(name, value, entry=key) for key, value in self._entries(name)}

    def integers(self, name: str, *, low: int, high: int) -> dict[str, int]:
        """A table of whole numbers; {} where it is missing."""
        return {key: self._integer(name, value, low, high, key) for key, value in self._entries(name)}

    def rows(self, name: str) -> dict[str, tuple[int, ...]]:
        """Lists of row numbers by module, or one list under the name ""; {} where it is missing."""
        value: Any = self._value(name, {})
        lists: dict[str, Any] = {"": value} if isinstance(value, list) else dict(self._entries(name))
        for key, rows in lists.items():
            if not isinstance(rows, list):
                raise self.error(
                    name,
                    phrase("R-holds-no-list-entry", key=_shown(key)),
                    rows,
                    phrase("R-list-row-numbers"),
                )
        return {
            key: tuple(self._integer(name, row, 0, MOST_ROWS, key) for row in rows)
            for key, rows in lists.items()
        }

    def error(
        self, name: str, why: str, got: Any, expected: str, hint: str | Phrase = HINT
    ) -> FileFormatError:
        """The error for a field whose value `got` cannot be followed."""
        return unreadable(
            why, self.file, key=f"{self._prefix}{name}", got=_shown(got), expected=expected, hint=hint
        )

    def _value(self, name: str, default: Any) -> Any:
        value = self._table.get(name)
        if value is not None:
            return value
        if default is None:
            raise unreadable(
                phrase("R-missing"),
                self.file,
                key=f"{self._prefix}{name}",
                got=phrase("R-no-such-field"),
                expected=phrase("R-r-lora-alpha-or-alpha"),
            )
        return default

    def _entries(self, name: str) -> list[tuple[str, Any]]:
        value = self._value(name, {})
        if not isinstance(value, dict):
            raise self.error(name, phrase("R-not-table"), value, phrase("R-table-patterns-numbers"))
        return list(cast("dict[str, Any]", value).items())

    def _number(self, name: str, value: Any, low: float = -math.inf, entry: str = "") -> float:
        # Python takes True for 1. Numbers of thousands of digits are compared before they are converted.
        sound = isinstance(value, int | float) and not isinstance(value, bool)
        if not sound or not max(low, -LARGEST) <= value <= LARGEST:
            raise self._out_of_bounds(name, value, "a finite number", entry)
        return float(value)

    def _integer(self, name: str, value: Any, low: int, high: int, entry: str = "") -> int:
        integer = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if not integer or isinstance(value, bool) or not low <= value <= high:
            raise self._out_of_bounds(name, value, f"a whole number from {low:g} to {high:g}", entry)
        return int(value)

    def _out_of_bounds(self, name: str, value: Any, expected: str, entry: str) -> FileFormatError:
        where = f" in the entry {_shown(entry)}" if entry else ""
        return self.error(name, phrase("R-holds-no-usable-number", where=where), value, expected)


MOST_ROWS = 1 << 31
"""More rows than any embedding has."""
LARGEST = 1e30
"""The largest number that a field may hold. Ranks, scales and bounds are far smaller. Products with larger
numbers could overflow float32."""


def _shown(value: Any) -> str:
    """A value from a file for an error: on one line, without control characters, and not too long."""
    if isinstance(value, int) and abs(value) > LARGEST:
        # Python refuses to write numbers of thousands of digits.
        return f"a whole number of {value.bit_length()} bits"
    return SHORT.repr(value)
