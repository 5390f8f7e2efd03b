"""Patterns that choose modules by their paths."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..errors import RuleError
from ..expressions import search
from ..rules.patterns import between_slashes

GLOB = re.compile(r"[*?\[]")
"""What makes a pattern a glob."""


@dataclass(frozen=True)
class Pattern:
    """A pattern as the user wrote it, and the test that it stands for.

    - `encoder.layer.0` is the module of that path and everything inside it.
    - `*.attention.*` is a glob over the whole path: `*` is any text, dots included, `?` one character.
    - `/query|value$/` is a regular expression that is searched for in the path.
    """

    text: str
    matches: Callable[[str], bool]

    @classmethod
    def of(cls, text: str) -> Pattern:
        """The pattern that a text means. Raises RuleError where it is empty or no regular expression."""
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RuleError("a pattern is not a text", got=repr(text), expected="such as *.attention.*")
        if (expression := between_slashes(text)) is not None:
            return cls(text, search(expression))
        if not text.strip():
            raise RuleError("a pattern is empty", expected="a path, a glob or /a regular expression/")
        if GLOB.search(text):
            return cls(text, lambda path: fnmatch.fnmatchcase(path, text))
        return cls(text, lambda path: path == text or path.startswith(f"{text}."))

    def check_used(self, paths: Iterable[str], what: str, others: Mapping[str, str] | None = None) -> None:
        """Raise RuleError unless the pattern matches one of these paths. `what` names them in the message.

        `others` are paths that are none of them, with the reasons.
        """
        known = list(paths)
        if any(map(self.matches, known)):
            return
        refused = next(((path, why) for path, why in (others or {}).items() if self.matches(path)), None)
        near = difflib.get_close_matches(self.text.strip("/*"), known, n=3, cutoff=0.3) or known[:3]
        raise RuleError(
            f"a pattern matches none of the {what}",
            got=self.text,
            expected=f"one that matches, such as {' or '.join(near)}" if near else None,
            hint=f"{refused[0] or 'The model itself'} cannot be adapted: {refused[1]}" if refused else None,
        )


def patterns(texts: str | Iterable[str]) -> tuple[Pattern, ...]:
    """The patterns of these texts, or of the one text."""
    return tuple(map(Pattern.of, [texts] if isinstance(texts, str) else texts))
