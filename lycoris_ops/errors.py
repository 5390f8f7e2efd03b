"""The errors for bad input, all of one family, and how they show text that comes from files."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from .messages import Phrase, Value, filled, messages, phrase

if TYPE_CHECKING:
    from typing_extensions import Self


LONGEST = 500
"""The most characters shown of each part of a message."""


def printable(text: str, most: int = LONGEST) -> str:
    """Make a text, perhaps from a file, safe to show on one line.

    Line breaks and tabs become spaces. Characters that control a terminal, reverse the direction of text, are
    invisible or are not text become codes such as `\\x1b`. Letters of any language stay. A text longer than
    `most` characters loses its middle.
    """
    if len(text) > most:
        text = f"{text[: most // 2]}...{text[-(most // 2) :]}"
    return text if text.isprintable() else "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    # Spaces of other widths count as not printable, but are harmless.
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()


class LycorisError(Exception):
    """The base of all errors: what went wrong, where, what was found, what was expected, and what to do.

    `code` names the error, such as `E-file-absent`. `values` fill the text of the code, see `messages`. A
    value `got`, `expected` or `hint` is used in place of the text's own. If `code` is not a known code, it is
    itself the problem that is shown.

    The message joins the known parts. Each part is made safe by `printable`, so that text from a file can
    neither start a new line nor control a terminal. A caller that has more information, such as the file or
    the layer, adds it by :meth:`within`. `place` is where in the user's input the fault is, such as `row 2`.
    `key` is a key of the file, mostly the name of a layer. `weight` is the model's weight that the layer was
    to be applied to.
    """

    def __init__(
        self,
        code: str,
        *,
        file: str | None = None,
        place: str | Phrase | None = None,
        key: str | None = None,
        weight: str | None = None,
        **values: Value,
    ) -> None:
        self.code = code
        self.file = file
        self.place = place
        self.key = key
        self.weight = weight
        self.values: dict[str, Value] = values
        super().__init__(code)

    @property
    def problem(self) -> str:
        """What went wrong."""
        return self._text("problem") or ""

    @property
    def got(self) -> str | None:
        """What was found."""
        return self._text("got")

    @property
    def expected(self) -> str | None:
        """What should have been found."""
        return self._text("expected")

    @property
    def hint(self) -> str | None:
        """What to do."""
        return self._text("hint")

    def _text(self, part: str) -> str | None:
        if (own := self.values.get(part)) is not None:
            return str(own)
        text = (
            messages().get(self.code, {"problem": self.code.replace("{", "{{").replace("}", "}}")}).get(part)
        )
        if text is None:
            return None
        return filled(text, {"key": self.key, "weight": self.weight, **self.values})

    def within(
        self,
        *,
        file: str | None = None,
        place: str | Phrase | None = None,
        key: str | None = None,
        weight: str | None = None,
    ) -> Self:
        """Fill in file, place, key and weight where they are not known yet, and return this error."""
        self.file = self.file or file
        self.place = self.place or place
        self.key = self.key or key
        self.weight = self.weight or weight
        return self

    def shown_as(self, shown: Callable[[str], str]) -> None:
        """Replace each text in this error, such as the path of a file, by the result of `shown` for this
        text."""
        for values in (vars(self), self.values):
            for name, value in values.items():
                if isinstance(value, str):
                    values[name] = shown(value)
                elif isinstance(value, Phrase):
                    values[name] = value.shown_as(shown)

    def __str__(self) -> str:
        file, place, key, weight, got, expected, problem, hint = self._printable()
        colon = phrase("R-colon")
        layer = phrase("R-error-layer", key=key, weight=weight) if key and weight else key or weight
        text = colon.join(words for words in (file, place, layer, problem) if words)
        known = {"R-error-found": got, "R-error-expected": expected}
        received = [phrase(code, words=words) for code, words in known.items() if words]
        if received:
            text = phrase("R-error-received", problem=text, received=phrase("R-semicolon").join(received))
        return phrase("R-error-hint", problem=text, hint=hint) if hint else text

    def told(self) -> str:
        """The message in lines: what is wrong and what to do, then an empty line, then the details."""
        return "\n\n".join(filter(None, self.parts()))

    def parts(self) -> tuple[str, str]:
        """What is wrong and what to do, in lines; and the details, in lines, or an empty text."""
        file, place, key, weight, got, expected, problem, hint = self._printable()
        name = PurePath(file).name
        if name and problem.startswith(PurePath(name).stem):
            name = ""
        colon = phrase("R-colon")
        lines = [phrase("R-sentence", words=colon.join(words for words in (place, name, problem) if words))]
        if hint:
            lines.append(hint if hint.endswith(("?", "？")) else phrase("R-sentence", words=hint))
        elif expected:
            lines.append(phrase("R-told-expected", words=expected))
            expected = ""
        known = {
            "R-detail-file": file,
            "R-detail-at": key,
            "R-detail-weight": weight,
            "R-detail-found": got,
            "R-detail-expected": expected,
        }
        details = [phrase(code, words=words) for code, words in known.items() if words]
        return "\n".join(lines), "\n".join(details)

    def _printable(self) -> Iterator[str]:
        texts = (self.file, self.place, self.key, self.weight, self.got, self.expected, self.problem)
        return (printable(str(text or "")) for text in (*texts, self.hint))


Problem = TypeVar("Problem", bound=LycorisError)


class located:  # noqa: N801 - used as a function is
    """A context that adds these places to a LycorisError raised inside it, unless the error already has
    them."""

    def __init__(
        self,
        *,
        file: str | None = None,
        place: str | Phrase | None = None,
        key: str | None = None,
        weight: str | None = None,
    ) -> None:
        self._places: dict[str, Any] = {"file": file, "place": place, "key": key, "weight": weight}

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LycorisError):
            error.within(**self._places)


def unknown_name(
    code: str,
    name: str,
    known: Iterable[str],
    *,
    error: type[Problem] = LycorisError,
    key: str | None = None,
    meant: str | None = None,
) -> Problem:
    """The error for a name that is not among the known names.

    Its hint gives `meant`, the known name for the same thing. Without `meant` it suggests the most similar
    name.
    """
    names = list(known)
    near = [meant] if meant else get_close_matches(name, names, 1)
    return error(
        code,
        key=key,
        got=name,
        expected=", ".join(names) or "none",
        hint=Phrase("R-name-meant" if meant else "R-name-similar", {"name": near[0]}) if near else None,
    )


class FileFormatError(LycorisError):
    """A file that cannot be read in the format that its name or content claims."""


class LayerError(LycorisError):
    """A layer of an adapter whose tensors contradict each other or hold unusable values."""


class UnsupportedError(LayerError):
    """A valid layer whose change the library cannot make. Other layers of the file can still be applied."""


class UnsuitedError(LayerError):
    """A kind of layer that cannot change a weight of this shape."""


class MatchError(LycorisError):
    """An adapter that does not fit the model that it is to be applied to."""


class RuleError(LycorisError):
    """A line of block rules that cannot be understood, or that does not fit the model."""

    column = 1
    """The column of the fault in its line, from 1."""

    def at(self, column: int) -> Self:
        """Set the column of the fault in its line, and return this error."""
        self.column = column
        return self


class ScheduleError(LycorisError):
    """A curve of strengths over time that cannot be understood or followed."""


class PlanError(LycorisError):
    """A probe or a plan that cannot be made, or that does not fit the model."""


class WriteError(LycorisError):
    """A file that could not be written. An earlier file of the same name is untouched."""


class TrainError(LycorisError):
    """A training that cannot begin or cannot go on. The weights trained so far are kept."""


class DivergedError(TrainError):
    """A training with a loss or gradient that is not finite, or with a rising loss.

    The network has the last good weights.
    """
