"""What reports share: counts, lists of limited length, long texts shortened, and lines that stay lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..errors import printable

VALUES = 4
"""How many different values are written out. A line holds about as many."""
ITEMS = 8
"""How many items of a list are written out. A node shows about as many lines without scrolling."""
NAMES = 3
"""How many names are written out within a sentence."""
LONG = 60
"""The most characters of a value that are written out."""
LINE = 2000
"""The most characters of a line. Block rules can make a line long."""


def paragraph(lines: Iterable[str]) -> str:
    """The lines of a report as one text. Each is `printable`: nothing in it can begin a line of its own."""
    return "\n".join(printable(line, LINE) for line in lines)


def counted(values: Iterable[str] | Mapping[str, int], *, always: bool = False) -> str:
    """Values with their frequencies, the most frequent first: `16 x8, 32 x2`.

    If all values are the same, the result is this value without its frequency, unless `always`.
    """
    ordered = Counter(values).most_common()
    if len(ordered) == 1 and not always:
        return ordered[0][0]
    shown = ", ".join(f"{value} x{count}" for value, count in ordered[:VALUES])
    return f"{shown} and {len(ordered) - VALUES} others" if len(ordered) > VALUES else shown


def listed(what: str, items: Sequence[str], most: int = ITEMS) -> list[str]:
    """Lines with the number of items and `what` they are, then the first `most` items. None for no items."""
    if not items:
        return []
    lines = [f"  {len(items)} {what}:", *(f"    {item}" for item in items[:most])]
    return lines if len(items) <= most else [*lines, f"    and {len(items) - most} more"]


def few(names: Sequence[str]) -> str:
    """The first names of several, for a sentence: `a, b, c and 2 more`."""
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more} more" if more > 0 else "")


def short(text: str) -> str:
    """A text on one line, cut off with `...` where it is longer than `LONG`."""
    # Cut off before it is split too: a text out of a file can be long.
    line = " ".join(text[: LONG * LONG].split())
    return line if len(line) <= LONG else f"{line[: LONG - 3]}..."
