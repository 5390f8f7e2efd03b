"""The texts of errors and of reports, by their codes.

`messages.json` in a package holds its texts in English. An error has a code such as `E-file-empty`; its
texts are the `problem` and, where they say more than a value, `got`, `expected` and `hint`. A line of a
report has a code such as `R-saved-read-back`, and one `text`; see `phrase`.

`{name}` in a text is replaced by the value of that name. Of several values, `{names:list}` gives `a, b, c`
and `{names:or}` gives `a, b or c`; of a number, `{count:layer|layers}` gives `1 layer` or `2 layers`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

Value = str | int | float | Sequence[str] | Sequence[int] | Exception | None
"""What a text can be filled with."""

_FILES = [Path(__file__).with_name("messages.json")]


def add_messages(file: Path) -> None:
    """Add the texts of another package."""
    if file not in _FILES:
        _FILES.append(file)
        messages.cache_clear()


@cache
def messages() -> Mapping[str, Mapping[str, str]]:
    """All texts by code."""
    return {
        code: texts for file in _FILES for code, texts in json.loads(file.read_text(encoding="utf-8")).items()
    }


def phrase(code: str, **values: Value) -> str:
    """The `text` of a code with its values, as in a line of a report."""
    return filled(messages()[code]["text"], values)


def filled(text: str, values: Mapping[str, object]) -> str:
    """A text with its values."""
    return _FORMATTER.vformat(text, (), values)


def number_of(count: int, one: str, many: str | None = None) -> str:
    """A number with what it counts: `1 layer`, `2 layers`. `many` is `one` with an s unless given."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def either(names: Sequence[str]) -> str:
    """Names as alternatives in words: `a, b or c`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


class _Formatter(Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if "|" in format_spec:
            return number_of(value, *format_spec.split("|"))
        if format_spec == "or":
            return either([*map(str, value)])
        return (
            ", ".join(map(str, value)) if format_spec == "list" else super().format_field(value, format_spec)
        )


_FORMATTER = _Formatter()
