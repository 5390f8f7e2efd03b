"""The texts of errors and of reports, by their codes.

`messages.json` in a package holds its texts in English. An error has a code such as `E-file-absent`; its
texts are the `problem` and, where they say more than a value, `got`, `expected` and `hint`. A line of a
report has a code such as `R-saved-read-back`, and one `text`; see `phrase`.

`{name}` in a text is replaced by the value of that name. Of several values, `{names:list}` gives `a, b, c`
and `{names:or}` gives `a, b or c`; of a number, `{count:layer|layers}` gives `1 layer` or `2 layers`.
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
"""The texts of each code, by their parts."""

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
    """Add a language. `read` is called once, when the language is first spoken."""
    _others[language] = read
    texts_in.cache_clear()


def set_language(usual: Callable[[], str]) -> None:
    """Let `usual` say in which language texts are to be, where no `speaking` does."""
    _usual[:] = [usual]


@contextmanager
def speaking(language: str) -> Generator[None]:
    """Texts that are made inside are in this language, or in English where it has none."""
    token = _asked.set(language)
    try:
        yield
    finally:
        _asked.reset(token)


def speak(language: str) -> None:
    """As `speaking`, for the rest of the current task or thread."""
    _asked.set(language)


def languages() -> list[str]:
    """The languages that texts can be in, English first."""
    return [ENGLISH, *sorted(_others)]


@cache
def texts_in(language: str) -> Texts:
    """All texts of a language by code. A part that it lacks is in English."""
    if language != ENGLISH:
        own = _others[language]()
        return {code: {**parts, **own.get(code, {})} for code, parts in texts_in(ENGLISH).items()}
    return {
        code: texts for file in _files for code, texts in json.loads(file.read_text(encoding="utf-8")).items()
    }


def language() -> str:
    """The language of the moment."""
    asked = _asked.get() or _usual[0]()
    return asked if asked in _others else ENGLISH


def messages() -> Texts:
    """All texts by code, in the language of the moment."""
    return texts_in(language())


def phrase(code: str, **values: Any) -> str:
    """The `text` of a code with its values, as in a line of a report."""
    return filled(messages()[code]["text"], values)


@dataclass(frozen=True)
class Phrase:
    """A text that is kept by its code and values. `str` gives it in the language of the moment."""

    code: str
    values: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)

    def __str__(self) -> str:
        return phrase(self.code, **self.values)

    def shown_as(self, shown: Callable[[str], str]) -> Phrase:
        """The same with `shown` of each text among the values."""
        values = {name: shown(text) if isinstance(text, str) else text for name, text in self.values.items()}
        return Phrase(self.code, values)


Value = str | int | float | Sequence[str] | Sequence[int] | Exception | Phrase | None
"""What a text can be filled with."""


def filled(text: str, values: Mapping[str, object]) -> str:
    """A text with its values."""
    return _FORMATTER.vformat(text, (), values)


def number_of(count: int, one: str, many: str | None = None) -> str:
    """A number with what it counts: `1 layer`, `2 layers`. `many` is `one` with an s unless given."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def either(names: Sequence[str]) -> str:
    """Names as alternatives in words: `a, b or c`."""
    if len(names) < 2:
        return "".join(names)
    return phrase("R-or", first=names[:-1], last=names[-1])


def joined(names: Sequence[str]) -> str:
    """Names in a row: `a, b, c`."""
    return phrase("R-comma").join(names)


class _Formatter(Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if "|" in format_spec:
            return number_of(value, *format_spec.split("|"))
        if format_spec in ("or", "list"):
            return (either if format_spec == "or" else joined)([*map(str, value)])
        return super().format_field(value, format_spec)


_FORMATTER = _Formatter()
