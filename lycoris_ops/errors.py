"""The one family of errors that bad input raises."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class LycorisError(Exception):
    """What went wrong, where, what was found, what was expected, and what to do about it.

    Every part is kept as an attribute, and the message is composed of those that are known, so that
    a caller that knows more (the file, the layer) can add it with :meth:`within`. `key` is what is meant in
    the file, mostly a layer; `weight` is what it was to be applied to.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | None = None,
        key: str | None = None,
        weight: str | None = None,
        got: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = file
        self.key = key
        self.weight = weight
        self.got = got
        self.expected = expected
        self.hint = hint
        super().__init__(problem)

    def within(self, *, file: str | None = None, key: str | None = None, weight: str | None = None) -> Self:
        """The same error, with file, key or weight filled in where it was not known yet."""
        self.file = self.file or file
        self.key = self.key or key
        self.weight = self.weight or weight
        return self

    def __str__(self) -> str:
        place = " on ".join(part for part in (self.key, self.weight) if part)
        where = ": ".join(part for part in (self.file, place) if part)
        found = "; ".join(
            f"{label} {part}" for label, part in (("found", self.got), ("expected", self.expected)) if part
        )
        text = f"{where}: {self.problem}" if where else self.problem
        if found:
            text += f" ({found})"
        return f"{text}. {self.hint}" if self.hint else text


@contextmanager
def located(*, file: str | None = None, key: str | None = None, weight: str | None = None) -> Generator[None]:
    """What is raised inside names these places, where it does not name others itself."""
    try:
        yield
    except LycorisError as error:
        error.within(file=file, key=key, weight=weight)
        raise


def either(names: Sequence[str]) -> str:
    """Names in words, of which one is to be taken: `a, b or c`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


class FileFormatError(LycorisError):
    """A file that cannot be read as what it claims to be."""


class LayerError(LycorisError):
    """The tensors of one adapter layer contradict each other or hold unusable values."""


class MatchError(LycorisError):
    """An adapter and the model it was given to do not fit."""


class RuleError(LycorisError):
    """A line of block rules that cannot be understood."""


class WriteError(LycorisError):
    """A file could not be written; what was there before is untouched."""
