"""Phrases that reports share: counts, lists that end in time, long texts on one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

VALUES = 4
"""Different values that are written out; a line holds about so many."""
ITEMS = 8
"""Lines of one kind that are written out; a node shows about so many without scrolling."""
NAMES = 3
"""Names within a sentence."""
LONG = 60
"""Characters of a value that is written out."""


def counted(values: Iterable[str] | Mapping[str, int], *, always: bool = False) -> str:
    """Values with how often they occur, the most frequent first: `16 x8, 32 x2`.

    A single one stands alone unless `always`.
    """
    ordered = Counter(values).most_common()
    if len(ordered) == 1 and not always:
        return ordered[0][0]
    shown = ", ".join(f"{value} x{count}" for value, count in ordered[:VALUES])
    return f"{shown} and {len(ordered) - VALUES} others" if len(ordered) > VALUES else shown


def listed(what: str, items: Sequence[str], most: int = ITEMS) -> list[str]:
    """Lines that say how many there are of what, then which of them; none where there is nothing."""
    if not items:
        return []
    lines = [f"  {len(items)} {what}:", *(f"    {item}" for item in items[:most])]
    return lines if len(items) <= most else [*lines, f"    and {len(items) - most} more"]


def few(names: Sequence[str]) -> str:
    """The first of some names within a sentence: `a, b, c and 2 more`."""
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more} more" if more > 0 else "")


def short(text: str) -> str:
    """A text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= LONG else f"{line[: LONG - 3]}..."
