"""Shared by reports: counts, lists of limited length, shortened texts, and lines free of line breaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..charts import shortened
from ..errors import printable
from ..messages import Value, phrase
from ..stack.stack import Entry

VALUES = 4
"""How many different values are written out. A line holds about as many."""
ITEMS = 8
"""How many items of a list are written out. A node shows about as many lines without scrolling."""
NAMES = 3
"""How many names are written out within a sentence."""
NAME = 32
"""The most letters of a file's name in a sentence."""
LONG = 60
"""The most characters of a value. Longer ones are cut off."""
LINE = 2000
"""The most characters of a line. Block rules can make a line long."""
UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
"""Units of sizes in bytes."""


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
    return phrase("R-others", shown=shown, count=len(ordered) - VALUES) if len(ordered) > VALUES else shown


def ranks(values: Iterable[int | None]) -> str:
    """Ranks with their frequencies, as in `counted`; `full` for None, which is a layer without factors."""
    return counted("full" if rank is None else str(rank) for rank in values)


def listed(code: str, items: Sequence[str], most: int | None = ITEMS, **values: Value) -> list[str]:
    """A line with the number of items, then a line for each of the first `most`, or of all for None.

    `code` is of the first line, whose text has the `count` and these values. Without items there are none.
    """
    if not items:
        return []
    first = phrase(code, count=len(items), **values)
    lines = [f"  {first}", *(f"    {item}" for item in items[:most])]
    left = 0 if most is None else len(items) - most
    return [*lines, f"    {phrase('R-more', left=left)}"] if left > 0 else lines


def few(names: Sequence[str]) -> str:
    """The first names of several, for a sentence: `a, b, c and 2 more`."""
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" {phrase('R-more-2', more=more)}" if more > 0 else "")


def plain_name(name: str) -> str:
    """The name of a file for a sentence, without folder and .safetensors, and shortened in its middle."""
    return shortened(name.replace("\\", "/").rpartition("/")[2].removesuffix(".safetensors"), NAME)


def unmeasured(entry: Entry) -> list[str]:
    """A line saying that only the high-noise file of a pair was measured; no line for other entries."""
    low = entry.low_noise
    return [f"  {phrase('R-not-measured-file-low-noise', name=low.name)}"] if low else []


def short(text: str) -> str:
    """A text on one line, cut off with `...` where it is longer than `LONG`."""
    # Cut off once before it is split: a text from a file can be long.
    line = " ".join(text[: LONG * LONG].split())
    return line if len(line) <= LONG else f"{line[: LONG - 3]}..."


def sizes_in_words(before: int | None, after: int) -> str:
    """A size in bytes in words: `13.5 MB`, or `0.55 → 13.5 MB` if it was different before."""
    largest = max(before or 0, after)
    unit, name = next((each for each in UNITS if largest >= each[0] / 10), UNITS[-1])
    old, new = ("" if size is None else _three_digits(size / unit) for size in (before, after))
    return f"{old} → {new} {name}" if old and old != new else f"{new} {name}"


def percent(share: float) -> str:
    """A share with two or three digits: `31 %`, `4.2 %`, `0.05 %`."""
    return f"{100 * share:.{0 if share >= 0.0995 else 1 if share >= 0.00995 else 2}f} %"


def _three_digits(number: float) -> str:
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"
