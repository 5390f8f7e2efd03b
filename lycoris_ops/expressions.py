"""Regular expressions from users, and from files, which strangers wrote.

Users' expressions use Python's `re`, which a crafted expression can keep busy forever. Expressions from files
use the package `regex`, which has the same syntax and a time limit. Most expressions in files are plain
paths, which need no package.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from itertools import chain

from .errors import RuleError

MOST_TEXT = 1 << 20
"""The most characters that all expressions of one field may have. An expression for each of the 800 layers of
SDXL needs about 60,000."""
MOST_COMPILED = 1 << 14
"""The most characters that all expressions other than plain paths may have. Compiling so many takes a
quarter of a second."""
MOST_COPIES = 10_000
"""The most copies that counted repeats (`a{9}`) may make. Compiling writes each of them out."""
COUNTS = re.compile(r"\{(\d*),?(\d*)\}")
SECONDS = 0.4
"""The most seconds that all look-ups in one field may take together."""


def search(text: str) -> Callable[[str], bool]:
    """A test whether a user's regular expression matches anywhere in a name, ignoring case. Raises RuleError
    for an invalid expression.
    """
    try:
        found = re.compile(text, re.IGNORECASE)
    except (re.error, RecursionError, OverflowError) as error:
        raise RuleError(
            "a pattern is not a regular expression",
            got=f"/{text}/: {error}",
            expected="the syntax of Python's re",
        ) from None
    return lambda name: found.search(name) is not None


class ExpressionError(ValueError):
    """An expression that cannot be used, or takes too long to match."""


PATH = re.compile(r"(\^?)((?:\\[^a-zA-Z0-9]|[^\\()\[\]{}*+?|^$])+)\$?")
"""Matches nearly all expressions: a layer's path or the end of one, with or without anchors.

Groups: the first anchor, and the path. Its dots are taken literally, although a dot in a regular expression
means any character. No model has two paths that differ only there."""


class Expressions:
    """The expressions of one field of a file, in their order.

    By PEFT's rule an expression must match a whole path, or the end of one after a dot. With `whole` it must
    match the whole path. Raises ExpressionError, which says which expression is invalid and why.
    """

    def __init__(self, texts: Sequence[str], *, whole: bool = False) -> None:
        if sum(map(len, texts)) > MOST_TEXT:
            raise ExpressionError(f"more than {MOST_TEXT} characters in all expressions together")
        self._paths: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        others: dict[int, str] = {}
        for number, text in enumerate(texts):
            parts = [PATH.fullmatch(part) for part in text.split("|")]
            if not all(parts):
                others[number] = text
            for match in filter(None, parts if all(parts) else []):
                table = self._paths if whole or match[1] else self._ends
                # Among equal expressions the first counts.
                table.setdefault(re.sub(r"\\(.)", r"\1", match[2]), number)
        self._others = _compiled(others, whole=whole)
        self._found: dict[str, int | None] = {}
        self._left = SECONDS

    def first(self, path: str) -> int | None:
        """The number of the first expression that matches a path; None if none does.

        Raises ExpressionError where all look-ups together have taken longer than `SECONDS`.
        """
        if path not in self._found:
            parts = path.split(".")
            ends = [self._ends.get(".".join(parts[count:])) for count in range(len(parts))]
            found = [number for number in (*ends, self._paths.get(path)) if number is not None]
            best = min(found, default=None)
            for number, fits in self._others:
                if best is not None and best <= number:
                    break
                if self._timed(fits, path):
                    best = number
                    break
            self._found[path] = best
        return self._found[path]

    def _timed(self, fits: Callable[[str, float], bool], path: str) -> bool:
        start = time.monotonic()
        try:
            if self._left <= 0:
                raise TimeoutError
            return fits(path, self._left)
        except (TimeoutError, MemoryError):
            raise ExpressionError(f"more than {SECONDS} s to match them") from None
        finally:
            self._left -= time.monotonic() - start


def _compiled(texts: dict[int, str], *, whole: bool) -> list[tuple[int, Callable[[str, float], bool]]]:
    """The number of each expression, and a function that tests a path against it within a time limit."""
    if not texts:
        return []
    try:
        import regex
    except ImportError:
        raise ExpressionError(
            "a regular expression, which needs the package regex: pip install regex"
        ) from None
    if sum(map(len, texts.values())) > MOST_COMPILED:
        raise ExpressionError(f"more than {MOST_COMPILED} characters in expressions that are not paths")

    def test(text: str) -> Callable[[str, float], bool]:
        counts = (int(count) for count in chain(*COUNTS.findall(text)) if count)
        if math.prod(filter(None, counts)) > MOST_COPIES:
            raise ExpressionError(f"counted repeats of more than {MOST_COPIES} copies, in {text[:200]!r}")
        try:
            found = regex.compile(text if whole else rf"(?:.*\.)?(?:{text})")
            # Compile it alone too: an extra ) could close the group that is put around it.
            regex.compile(text)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ExpressionError(f"{error}, in {text[:200]!r}") from None
        return lambda path, seconds: found.fullmatch(path, timeout=seconds) is not None

    return [(number, test(text)) for number, text in texts.items()]
