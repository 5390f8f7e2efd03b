"""Regular expressions from files, workflows and users.

A malicious expression can keep Python's `re` busy forever, and files and workflows may come from strangers.
All expressions therefore use the package `regex`, which has the same syntax and a time limit. Most
expressions in files are plain paths, which need no package.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import chain
from typing import Any

from .errors import RuleError
from .messages import phrase

MOST_TEXT = 1 << 20
"""The most characters that all expressions of one field of a file may have. An expression for each of the 800
layers of SDXL needs about 60,000."""
MOST_COMPILED = 1 << 14
"""The most characters that all expressions other than plain paths may have. Compiling so many takes a
quarter of a second."""
MOST_COPIES = 10_000
"""The most copies that counted repeats (`a{9}`) may make. Compiling writes each of them out."""
COUNTS = re.compile(r"\{(\d*),?(\d*)\}")
SECONDS = 0.4
"""The most processor seconds for all look-ups in one field or text. The `USUAL` time of each is added."""
QUICK = 0.001
"""Seconds after which a look-up lets other threads run. Nearly all look-ups take less."""
USUAL = 0.00002
"""Seconds added to `SECONDS` for each look-up, so that many quick look-ups are never refused."""

SLOW = f"more than {SECONDS} s to match them"
"""The reason given for an expression whose look-ups take too long."""


class ExpressionError(ValueError):
    """An expression that cannot be used, or that takes too long to match."""


class PackageError(ExpressionError):
    """The package `regex` is not installed."""


PATH = re.compile(r"(\^?)((?:\\[^a-zA-Z0-9]|[^\\()\[\]{}*+?|^$])+)\$?")
"""Matches nearly all expressions in files: a layer's path or the end of a path, with or without anchors.

Groups: the first anchor, and the path. Dots of the path are taken literally, although a dot in a regular
expression means any character. No model has two paths that differ only at such a dot."""


class Expressions:
    """The expressions of one field of a file, in their order.

    By PEFT's rule an expression must match a whole path, or the end of a path after a dot. With `full` it
    must match the whole path. Raises ExpressionError with the invalid expression and the reason.
    """

    def __init__(self, texts: Sequence[str], *, full: bool = False) -> None:
        if sum(map(len, texts)) > MOST_TEXT:
            raise ExpressionError(phrase("R-more-than-characters-all-expressions", most_text=MOST_TEXT))
        self._paths: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        others: dict[int, str] = {}
        for number, text in enumerate(texts):
            paths = [PATH.fullmatch(alternative) for alternative in text.split("|")]
            if not all(paths):
                others[number] = text
            for match in filter(None, paths if all(paths) else []):
                table = self._paths if full or match[1] else self._ends
                # If two expressions are equal, the first one counts.
                table.setdefault(re.sub(r"\\(.)", r"\1", match[2]), number)
        allowance = Allowance()
        self._others = [(number, allowance.test(text, full=full)) for number, text in others.items()]
        self._found: dict[str, int | None] = {}

    def first(self, path: str) -> int | None:
        """The number of the first expression that matches a path; None if none does.

        Raises ExpressionError where all look-ups together take longer than `SECONDS`.
        """
        if path not in self._found:
            segments = path.split(".")
            ends = [self._ends.get(".".join(segments[count:])) for count in range(len(segments))]
            numbers = [number for number in (*ends, self._paths.get(path)) if number is not None]
            best = min(numbers, default=None)
            for number, fits in self._others:
                if best is not None and best <= number:
                    break
                if fits(path):
                    best = number
                    break
            self._found[path] = best
        return self._found[path]


class Allowance:
    """The limits for the expressions of one field or text together: characters, and time."""

    def __init__(self) -> None:
        self._characters = MOST_COMPILED
        self._seconds = SECONDS

    def test(self, text: str, *, full: bool = False) -> Callable[[str], bool]:
        """A test whether an expression matches a path by PEFT's rule, or the whole path with `full`.

        Raises ExpressionError where the expression cannot be used. The test raises it when the time is used
        up.
        """
        full_text = text if full else rf"(?:.*\.)?(?:{text})"
        compiled = self._compiled(text, full_text)
        return lambda path: self._timed(compiled.fullmatch, path)

    def search(self, text: str) -> Callable[[str], bool]:
        """A test whether an expression matches anywhere in a name, ignoring case. Raises as `test` does."""
        match = self._compiled(text, f"(?i){text}").search
        known: dict[str, bool] = {}

        def fits(name: str) -> bool:
            # Rules are used again in each run, so each name is counted only once.
            matches = known.get(name)
            if matches is None:
                matches = known[name] = self._timed(match, name)
            return matches

        return fits

    def _compiled(self, text: str, used: str) -> Any:
        """The compiled expression `used`, which is made of the text of a file or a user."""
        try:
            import regex
        except ImportError:
            raise PackageError(phrase("R-regular-expression-needs-package-regex")) from None
        self._characters -= len(text)
        if self._characters < 0:
            raise ExpressionError(
                phrase("R-more-than-characters-expressions-not", most_compiled=MOST_COMPILED)
            )
        counts = (int(count) for count in chain(*COUNTS.findall(text)) if count)
        if math.prod(filter(None, counts)) > MOST_COPIES:
            raise ExpressionError(
                phrase("R-counted-repeats-more-than-copies", most_copies=MOST_COPIES, text=text[:200])
            )
        try:
            # Compile it alone too: an extra ) could close the group that is added around it.
            regex.compile(text)
            return regex.compile(used)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ExpressionError(phrase("R-in-4", error=error, text=text[:200])) from None

    def _timed(self, match: Callable[..., Any], name: str) -> bool:
        if self._seconds <= 0:
            raise ExpressionError(SLOW)
        # This clock takes a tenth of the time of the thread's clock, and there may be 100,000 look-ups.
        start = time.perf_counter()
        try:
            try:
                matched = match(name, timeout=QUICK, concurrent=False)
            except TimeoutError:
                matched = self._slow(match, name)
        except MemoryError:
            raise ExpressionError(phrase("R-more-memory-than-there-match")) from None
        # A longer time means that it waited for other processes, or that `_slow` has counted it.
        self._seconds += USUAL - min(time.perf_counter() - start, QUICK)
        return matched is not None

    def _slow(self, match: Callable[..., Any], name: str) -> Any:
        """A match that lets other threads run. It takes 5 ms each time."""
        start = time.thread_time()
        try:
            while (left := self._seconds - (time.thread_time() - start)) > 0:
                # The time limit of a match also counts other threads, so try again while this thread has time
                # left.
                with suppress(TimeoutError):
                    return match(name, timeout=max(left, 2 * QUICK), concurrent=True)
            raise ExpressionError(SLOW)
        finally:
            self._seconds -= time.thread_time() - start


_shared: ContextVar[Allowance | None] = ContextVar("shared", default=None)


@contextmanager
def of_one_text() -> Generator[None]:
    """A context, or a decorator, in which all calls of `search` share one allowance."""
    if _shared.get() is not None:
        yield
        return
    token = _shared.set(Allowance())
    try:
        yield
    finally:
        _shared.reset(token)


def search(text: str) -> Callable[[str], bool]:
    """A test whether a user's regular expression matches anywhere in a name, ignoring case.

    Raises RuleError for an expression that cannot be used. The test raises it when the time is used up.
    """

    try:
        fits = (_shared.get() or Allowance()).search(text)
    except PackageError:
        raise RuleError("E-regex-not-installed", text=text[:200]) from None
    except ExpressionError as error:
        raise RuleError("E-pattern-not-regular-expression", text=text[:200], error=str(error)) from None

    def matches(name: str) -> bool:
        try:
            return fits(name)
        except ExpressionError as error:
            raise RuleError("E-regular-expression-too-slow", text=text[:200], error=str(error)) from None

    return matches
