"""The lines of rules that bars show and write.

The end of a text belongs to the bars: lines that name only bars, then lines that scale kinds of layers. All
up to the last line of another form (a pattern, a preset, a vector) is the head, which stays as written. The
lines of the bars come after it, so they win.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from ..errors import RuleError
from ..rules.lines.assignment import Assignment
from ..rules.patterns import MOST, NUMBERS
from ..rules.rules import Rules, without_comment

WIDE = 48
"""The most characters of the names in one line that is written."""


class BarLine(NamedTuple):
    """A line that names only bars, or only kinds."""

    names: tuple[str, ...]
    value: float
    scales: bool
    comment: str


@dataclass
class BarLines:
    """A text of rules in parts: the head, and what the bars have."""

    blocks: Collection[str]
    """The names of the bars of single blocks, in their order."""
    head: list[str]
    values: dict[str, float] = field(default_factory=dict[str, float])
    """The weight that the lines of the bars give each block."""
    kinds: dict[str, float] = field(default_factory=dict[str, float])
    """The factor that they give each kind."""
    notes: list[str] = field(default_factory=list[str])
    """Lines of a comment alone."""
    comments: dict[str, str] = field(default_factory=dict[str, str])
    """The comments of lines, by the line as it would be written."""
    without_kinds: str = ""
    """The text up to the first line that scales a kind. Lines keep their numbers."""

    @classmethod
    def read(cls, text: str, blocks: Collection[str], kinds: Collection[str]) -> BarLines:
        lines = text.rstrip("\n").split("\n")
        read = [_read(line, blocks, kinds) for line in lines]
        end, before_values = len(lines), False
        # A scale before values has no effect on them.
        while end and (line := read[end - 1]) and not (line.scales and before_values):
            before_values |= bool(line.names) and not line.scales
            end -= 1
        parts = cls(blocks, lines[:end])
        first = len(lines)
        for at, line in enumerate(read[end:], end):
            assert line is not None, "only lines of bars come after the head"
            if not line.names:
                parts.notes += [lines[at]] * bool(line.comment)
                continue
            if line.scales:
                first = min(first, at)
            for name in line.names:
                if line.scales:
                    parts.kinds[name] = line.value * parts.kinds.get(name, 1.0)
                else:
                    parts.values[name] = line.value
            if line.comment:
                mark = "*" if line.scales else ""
                parts.comments[f"{_spelled(line.names, blocks)} = {mark}{shown(line.value)}"] = line.comment
        parts.without_kinds = "\n".join(lines[:first])
        return parts

    def set(self, weights: Mapping[str, float]) -> None:
        """Give bars other weights, by their names. Names of no block are kinds."""
        for name, weight in weights.items():
            (self.values if name in self.blocks else self.kinds)[name] = weight

    def __str__(self) -> str:
        # If no other lines come before, a block without a line has the weight 1.
        values = {name: value for name, value in self.values.items() if self.head or value != 1}
        written = [
            *_lines(values, self.blocks),
            *(f"{name} = *{shown(value)}" for name, value in self.kinds.items() if value != 1),
        ]
        spare = [comment for line, comment in self.comments.items() if line not in written]
        commented = [f"{line}  {self.comments[line]}" if line in self.comments else line for line in written]
        return "\n".join([*self.head, *self.notes, *spare, *commented])


def _read(line: str, blocks: Collection[str], kinds: Collection[str]) -> BarLine | None:
    """What a line gives the bars, nothing for a comment or an empty line; None for a line of another form."""
    body = without_comment(line)
    comment = line[len(body) :]
    if not body.strip():
        return BarLine((), 1.0, False, comment)
    try:
        (stage,) = Rules.parse(body).stages
    except RuleError:
        return None
    (rule,) = stage.lines
    if not isinstance(rule, Assignment) or rule.amount.is_ramp:
        return None
    patterns = [pattern.text.lower() for pattern in rule.patterns]
    scales = rule.amount.scales
    if scales:
        names = patterns if set(patterns) <= {*kinds} else []
    else:
        named = [_named(pattern, blocks) for pattern in patterns]
        names = [name for some in named for name in some] if all(named) else []
    return BarLine(tuple(names), rule.amount.first, scales, comment) if names else None


def _named(pattern: str, blocks: Collection[str]) -> list[str]:
    """The blocks that a pattern names, one or a range; none if one of them does not exist."""
    known = {name.lower(): name for name in blocks}
    if pattern in known:
        return [known[pattern]]
    if not (numbers := NUMBERS.fullmatch(pattern)):
        return []
    family, low, high = numbers[1], int(numbers[2]), int(numbers[3])
    names = [known.get(f"{family}.{at}", "") for at in range(low, min(high, low + MOST) + 1)]
    return names if all(names) else []


def _lines(values: Mapping[str, float], blocks: Iterable[str]) -> Iterable[str]:
    """The lines that give blocks their weights. Blocks of one weight share a line, if there is room."""
    by_value: dict[str, list[str]] = {}
    for name in blocks:
        if name in values:
            by_value.setdefault(shown(values[name]), []).append(name)
    for value, names in by_value.items():
        line = ""
        for word in _words(names):
            if line and len(line) + len(word) >= WIDE:
                yield f"{line} = {value}"
                line = ""
            line += f" {word}" if line else word
        yield f"{line} = {value}"


def _spelled(names: Collection[str], blocks: Iterable[str]) -> str:
    return " ".join(_words([name for name in blocks if name in names] or names))


def _words(names: Iterable[str]) -> Iterable[str]:
    """Names in the order of the bars, consecutive numbers as ranges."""

    def family(numbered: tuple[int, str]) -> tuple[str, int | str]:
        at, name = numbered
        stem, dot, number = name.rpartition(".")
        return (stem, int(number) - at) if dot and number.isdecimal() else (name, "")

    for (stem, offset), run in groupby(enumerate(names), key=family):
        first, *rest = (name for _, name in run)
        yield f"{first}-{rest[-1][len(stem) + 1 :]}" if rest and offset != "" else first


def shown(value: float) -> str:
    """A weight with at most three decimals."""
    # Plus 0.0, so that -0.0001 is 0.
    return f"{round(value, 3) + 0.0:.3f}".rstrip("0").rstrip(".")
