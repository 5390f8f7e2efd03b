"""How PEFT's configurations name layers: by regular expressions or ends of the paths in a module."""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from ..expressions import MOST_TEXT, ExpressionError, Expressions
from ..messages import phrase
from .fields import unreadable

T = TypeVar("T")


class Patterns(Generic[T]):
    """Values for the layers of a module, by patterns: `rank_pattern`, `alpha_pattern`.

    Raises FileFormatError, with the file and the field, where a pattern cannot be read or takes too long; see
    `expressions`.
    """

    def __init__(self, patterns: Mapping[str, T], file: str, field: str, *, full: bool = False) -> None:
        self._values = tuple(patterns.values())
        self._of = (file, field)
        with self._named():
            self._expressions = Expressions(tuple(patterns), full=full)

    def at(self, path: str, default: T) -> T:
        """The value of the first pattern that matches a path, or `default`.

        By PEFT's rule a pattern must match the whole path, or its end after a dot; with `full`, only the
        whole path.
        """
        if not self._values:
            return default
        with self._named():
            number = self._expressions.first(path)
        return default if number is None else self._values[number]

    @contextmanager
    def _named(self) -> Generator[None]:
        try:
            yield
        except ExpressionError as error:
            file, field = self._of
            raise unreadable(
                phrase("R-patterns-cannot-be-matched"),
                file,
                key=field,
                got=str(error),
                expected=phrase("R-paths-layers-or-regular-expressions"),
                hint=phrase("R-write-paths-layers-full"),
            ) from None


class Names:
    """Names of layers, as one expression for whole paths or as a list of ends of paths.

    Raises FileFormatError, with the file and the field, as `Patterns` does.
    """

    def __init__(self, names: str | Sequence[str], file: str, field: str) -> None:
        self._ends = () if isinstance(names, str) else tuple(names)
        length = sum(map(len, self._ends))
        if length > MOST_TEXT:
            raise unreadable(
                phrase("R-names-too-long"),
                file,
                key=field,
                got=phrase("R-characters", length=length),
                expected=phrase("R-at-most", most_text=MOST_TEXT),
            )
        expressions = {names: True} if isinstance(names, str) else {}
        self._patterns = Patterns(expressions, file, field, full=True)

    def __contains__(self, path: str) -> bool:
        return path.endswith(self._ends) or self._patterns.at(path, False)


def alone(path: str) -> str:
    """A pattern that matches this path alone. Without the ^, PEFT would match longer paths that end in it."""
    return f"^{re.escape(path)}"


def one_of(paths: Collection[str]) -> str:
    """One expression that matches these paths and no others, as PEFT matches it with the whole path."""
    return "|".join(re.escape(path) for path in sorted(paths)) if paths else "^$"


def ends_of(path: str) -> Iterator[str]:
    """The path itself, and its ends after each dot. PEFT takes the entries of a list as such ends."""
    while path:
        yield path
        path = path.partition(".")[2]
