"""A stack at several strengths at once, one for each picture of a batch."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..errors import LycorisError
from ..messages import number_of, phrase
from ..reading.load import title_of
from ..rules.rules import Rules
from .stack import Entry, Stack

MOST = 256
"""The most pictures of a grid."""
VALUES = "numbers such as 0, 0.5, 1, or 0..1.2 in 5"

Steps = Sequence[tuple[Entry, tuple[float, ...]]]
"""The entries that replace one entry along an axis, each with its factors. Their effects add up."""


def parse_values(text: str) -> tuple[float, ...]:
    """The numbers of a text such as `0, 0.5, 1`, or `0..1.2 in 5` for 5 numbers from 0 to 1.2.

    In `0; 0,5; 1` the comma is the decimal one. Full-width characters, dashes and the ellipsis are read as
    the plain ones.

    Raises LycorisError for text that is no number, for no numbers, and for more than `MOST`.
    """
    values: list[float] = []
    plain = unicodedata.normalize("NFKC", text).translate({0x2212: "-", 0x2013: "-"}).replace("...", "..")
    if ";" in plain and not re.search(r"\d\.\d|\d,\d+,\d", plain):
        plain = re.sub(r"(?<=\d),(?=\d)", ".", plain)
    for piece in filter(None, (piece.strip() for piece in re.split(r"[,;\n\u3001]", plain))):
        ramp = re.fullmatch(r"(\S+?)\s*\.\.\s*(\S+)\s+in\s+(\d+)", piece)
        first, last, count = ramp.groups() if ramp else (piece, piece, "1")
        begin, end, steps = _number(first, piece), _number(last, piece), min(int(count), MOST + 1)
        values += [round(begin + (end - begin) * n / max(1, steps - 1), 6) for n in range(steps)]
    if not 0 < len(values) <= MOST:
        raise LycorisError(
            "E-grid-too-many-strengths" if values else "E-grid-without-strengths",
            got=text.strip() or phrase("R-empty-text"),
            most=MOST,
            examples=VALUES,
        )
    return tuple(values)


def _number(word: str, piece: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LycorisError("E-grid-strength-not-understood", got=piece, expected=VALUES)
    return value


@dataclass(frozen=True)
class Axis:
    """One side of a grid: how the stack differs from picture to picture."""

    labels: tuple[str, ...]
    """The name of each step."""
    split: Callable[[int, Entry], Steps]
    """The steps of an entry, given its index in the stack."""


def strength_axis(stack: Stack, row: int, values: Sequence[float]) -> Axis:
    """An axis over the strength of the entry in `row`, from 1; for row 0, over a factor of all strengths.

    Raises LycorisError for a row that the stack does not have.
    """
    steps = tuple(values)
    title = "all" if row == 0 else _name(_entry(stack, row))

    def split(index: int, entry: Entry) -> Steps:
        if row == 0:
            return [(entry, steps)]
        if index != row - 1:
            return [(entry, (1.0,) * len(steps))]
        return [(replace(entry, strength=1.0, strength_clip=entry.strength_of("te")), steps)]

    return Axis(tuple(f"{title} {value:g}" for value in steps), split)


def block_axis(stack: Stack, pattern: str, values: Sequence[float]) -> Axis:
    """An axis over a factor of the blocks or layers that a pattern of block rules matches.

    Raises RuleError for a pattern that is not understood.
    """
    steps = tuple(values)
    inner, outer = Rules.parse(f"* = 0\n{pattern} = 1"), Rules.parse(f"{pattern} = 0")

    def split(_: int, entry: Entry) -> Steps:
        def ruled(rules: Rules) -> Entry:
            return replace(entry, rules=entry.rules.then(rules) if entry.rules else rules)

        return [(ruled(inner), steps), (ruled(outer), (1.0,) * len(steps))]

    return Axis(tuple(f"{pattern} {value:g}" for value in steps), split)


def file_axis(stack: Stack, rows: Sequence[int] = ()) -> Axis:
    """An axis with one entry of `rows` at a time, from 1; () for all rows. Other entries are in every step.

    Raises LycorisError for a row that the stack does not have.
    """
    chosen = tuple(rows) or tuple(range(1, len(stack) + 1))
    names = tuple(_name(_entry(stack, row)) for row in chosen)

    def split(index: int, entry: Entry) -> Steps:
        own = index + 1
        return [(entry, tuple(float(own == row or own not in chosen) for row in chosen))]

    return Axis(names, split)


@dataclass(frozen=True)
class Grid:
    """A stack whose strengths differ between the pictures of a batch, and the names of the pictures."""

    stack: Stack
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    """() where there is one row, without a name."""

    @property
    def count(self) -> int:
        return len(self.columns) * max(1, len(self.rows))

    @property
    def labels(self) -> str:
        """The names as a table: the columns' names in the first line, then each row's name on its own
        line."""
        return "\n".join(["\t".join(("", *self.columns)), *self.rows])


def strength_grid(stack: Stack, across: Axis, down: Axis | None = None) -> Grid:
    """The stack at each step of one axis, or of two: pictures go row by row.

    Raises LycorisError for more than `MOST` pictures, and for a stack whose strengths differ from picture to
    picture already.
    """
    rows = down.labels if down is not None else ()
    count = len(across.labels) * max(1, len(rows))
    if count > MOST:
        raise LycorisError("E-grid-too-large", most=MOST, got=number_of(count, "picture"))
    if any(entry.factors is not None for entry in stack):
        raise LycorisError("E-grid-strengths-already-set")
    entries: list[Entry] = []
    for index, entry in enumerate(stack):
        for stepped, steps in across.split(index, entry):
            for other, lines in down.split(index, stepped) if down is not None else [(stepped, (1.0,))]:
                factors = tuple(step * line for line in lines for step in steps)
                entries.append(replace(other, factors=factors))
    return Grid(Stack(entries), across.labels, rows)


def _entry(stack: Stack, row: int) -> Entry:
    if not 1 <= row <= len(stack):
        raise LycorisError(
            "E-stack-row-absent",
            got=str(row),
            expected=phrase("R-1", count=len(stack)) if len(stack) else phrase("R-stack-not-empty"),
        )
    return stack.entries[row - 1]


def _name(entry: Entry) -> str:
    return title_of(entry.name)
