"""The one family of errors that bad input raises."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class LycorisError(Exception):
    """What went wrong, where, what was found, what was expected, and what to do about it.

    Every part is kept as an attribute, and the message is composed of the parts that are known. A caller
    that knows more (the file, the layer) adds it with :meth:`within`. `key` is a key of the file, mostly the
    name of a layer; `weight` is the model's weight that the layer was to be applied to.
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
        """Fill in file, key and weight where they are not known yet, and return this error."""
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
    """Add these places to every LycorisError that is raised inside, where it does not name its own."""
    try:
        yield
    except LycorisError as error:
        error.within(file=file, key=key, weight=weight)
        raise


def either(names: Sequence[str]) -> str:
    """Names as alternatives in words: `a, b or c`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


class FileFormatError(LycorisError):
    """A file that cannot be read as what it claims to be."""


class LayerError(LycorisError):
    """The tensors of one adapter layer contradict each other or hold unusable values."""


class UnsupportedError(LayerError):
    """One layer that is sound, but whose change the library cannot make; the other layers can be applied."""


class MatchError(LycorisError):
    """An adapter does not fit the model that it is to be applied to."""


class RuleError(LycorisError):
    """A line of block rules that cannot be understood."""


class WriteError(LycorisError):
    """A file could not be written; what was there before is untouched."""
