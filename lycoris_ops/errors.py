"""The one family of errors that bad input raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class LycorisError(Exception):
    """What went wrong, where, what was found, what was expected, and what to do about it.

    Every part is kept as an attribute, and the message is composed of those that are known, so that
    a caller that knows more (the file, the layer) can add it with :meth:`within`.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | None = None,
        key: str | None = None,
        got: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = file
        self.key = key
        self.got = got
        self.expected = expected
        self.hint = hint
        super().__init__(problem)

    def within(self, *, file: str | None = None, key: str | None = None) -> Self:
        """The same error, with the file or key filled in where it was not known yet."""
        self.file = self.file or file
        self.key = self.key or key
        return self

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.key) if part)
        found = "; ".join(
            f"{label} {part}" for label, part in (("found", self.got), ("expected", self.expected)) if part
        )
        text = f"{where}: {self.problem}" if where else self.problem
        if found:
            text += f" ({found})"
        return f"{text}. {self.hint}" if self.hint else text


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
