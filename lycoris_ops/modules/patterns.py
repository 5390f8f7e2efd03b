"""Find modules by patterns, which are written as in block rules."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from ..errors import RuleError
from ..expressions import of_one_text
from ..messages import phrase
from ..rules.patterns import Pattern


@of_one_text()
def patterns(texts: str | Iterable[str]) -> tuple[Pattern, ...]:
    """The patterns of these texts, or of the one text."""
    return tuple(map(Pattern.of_modules, [texts] if isinstance(texts, str) else texts))


def check_used(
    pattern: Pattern, paths: Iterable[str], what: str, others: Mapping[str, str] | None = None
) -> None:
    """Raise RuleError unless a pattern matches one of these paths. `what` names them in the message.

    `others` are paths that cannot be adapted, with the reasons.
    """
    known = list(paths)
    if any(map(pattern.matches_path, known)):
        return
    refused = next(((path, why) for path, why in (others or {}).items() if pattern.matches_path(path)), None)
    inner = any(path.endswith(f".{pattern.text}") for path in known)
    near = difflib.get_close_matches(pattern.text.strip("/*"), known, n=3, cutoff=0.3) or known[:3]
    raise RuleError(
        "E-pattern-matches-nothing",
        what=what,
        got=pattern.text,
        expected=phrase("R-one-matches-such", value=" or ".join(near)) if near else None,
        hint=phrase(
            "R-cannot-be-adapted", module=refused[0] or phrase("R-model-itself-first"), why=refused[1]
        )
        if refused
        else phrase("R-pattern-must-match-whole-path", text=pattern.text)
        if inner
        else None,
    )
