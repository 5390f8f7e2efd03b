"""The texts of errors and reports, by code.

Each package has its English texts in `messages.json`. An error has a code such as `E-file-absent`. Its texts
are `problem` and, where a bare value is not enough, `got`, `expected` and `hint`. A line of a report has a
code such as `R-saved-read-back` and one `text`, see `phrase`.

`{name}` in a text is replaced by the value of this name. For several values, `{names:list}` gives `a, b, c`
and `{names:or}` gives `a, b or c`. For a number, `{count:layer|layers}` gives `1 layer` or `2 layers`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

ENGLISH = "en"
Texts = Mapping[str, Mapping[str, str]]
"""The texts of each code, by part."""

_files = [Path(__file__).with_name("messages.json")]
_others: dict[str, Callable[[], Texts]] = {}
_asked: ContextVar[str | None] = ContextVar("language", default=None)
_usual: list[Callable[[], str]] = [lambda: ENGLISH]


def add_messages(file: Path) -> None:
    """Add the English texts of another package."""
    if file not in _files:
        _files.append(file)
        texts_in.cache_clear()


def add_language(language: str, read: Callable[[], Texts]) -> None:
    """Add a language. `read` returns its texts, and is called when the language is first used."""
    _others[language] = read
    texts_in.cache_clear()


def set_language(usual: Callable[[], str]) -> None:
    """Set the function that gives the language of texts outside of any `speaking`."""
    _usual[:] = [usual]


@contextmanager
def speaking(language: str) -> Generator[None]:
    """A context in which texts are in this language, or in English where it has no text."""
    token = _asked.set(language)
    try:
        yield
    finally:
        _asked.reset(token)


def speak(language: str) -> None:
    """Set the language as `speaking` does, for the rest of the current task or thread."""
    _asked.set(language)


def languages() -> list[str]:
    """The languages that have texts, English first."""
    return [ENGLISH, *sorted(_others)]


@cache
def texts_in(language: str) -> Texts:
    """All texts of a language by code. A part missing from the language is in English."""
    if language != ENGLISH:
        own = _others[language]()
        return {code: {**parts, **own.get(code, {})} for code, parts in texts_in(ENGLISH).items()}
    return {
        code: texts for file in _files for code, texts in json.loads(file.read_text(encoding="utf-8")).items()
    }


def language() -> str:
    """The current language."""
    asked = _asked.get() or _usual[0]()
    return asked if asked in _others else ENGLISH


def messages() -> Texts:
    """All texts by code, in the current language."""
    return texts_in(language())


def phrase(code: str, **values: Any) -> str:
    """The `text` of a code, filled with these values, as for a line of a report."""
    return filled(messages()[code]["text"], values)


@dataclass(frozen=True)
class Phrase:
    """A text stored as its code and values. `str` gives it in the current language."""

    code: str
    values: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)

    def __str__(self) -> str:
        return phrase(self.code, **self.values)

    def shown_as(self, shown: Callable[[str], str]) -> Phrase:
        """This phrase, with each text among its values replaced by the result of `shown`."""
        values = {name: shown(text) if isinstance(text, str) else text for name, text in self.values.items()}
        return Phrase(self.code, values)


Value = str | int | float | Sequence[str] | Sequence[int] | Exception | Phrase | None
"""A value that a text can be filled with."""


def filled(text: str, values: Mapping[str, object]) -> str:
    """A text filled with its values."""
    return _FORMATTER.vformat(text, (), values)


def number_of(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun: `1 layer`, `2 layers`. `many` is the plural, by default `one` with an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def either(names: Sequence[str]) -> str:
    """Names as alternatives: `a, b or c`."""
    if len(names) < 2:
        return "".join(names)
    return phrase("R-or", first=names[:-1], last=names[-1])


def joined(names: Sequence[str]) -> str:
    """Names as a list: `a, b, c`."""
    return phrase("R-comma").join(names)


class _Formatter(Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if "|" in format_spec:
            return number_of(value, *format_spec.split("|"))
        if format_spec in ("or", "list"):
            return (either if format_spec == "or" else joined)([*map(str, value)])
        return super().format_field(value, format_spec)


_FORMATTER = _Formatter()
