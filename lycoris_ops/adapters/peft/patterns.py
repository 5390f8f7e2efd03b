"""How PEFT's configurations name layers: by regular expressions or ends of the paths in a module."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

Number = TypeVar("Number", int, float)


def check(pattern: str) -> str:
    """The pattern, unchanged. Raises re.error where it is not a regular expression."""
    re.compile(_at_the_end(pattern))
    return pattern


def override(patterns: Mapping[str, Number], path: str, default: Number) -> Number:
    """The value of the first pattern that matches a path, or `default`.

    By PEFT's rule a pattern must match the whole path, or the end of it after a dot.
    """
    matching = (value for pattern, value in patterns.items() if re.match(_at_the_end(pattern), path))
    return next(matching, default)


def ends(names: str | Sequence[str], path: str) -> bool:
    """Whether `names` covers a path: as one expression for the whole path, or as a list of ends of paths."""
    if isinstance(names, str):
        return re.match(rf"^({names})$", path) is not None
    return path.endswith(tuple(names))


def alone(path: str) -> str:
    """A pattern that matches this path alone. Without the ^, PEFT would match longer paths that end in it."""
    return f"^{re.escape(path)}"


def one_of(paths: Sequence[str]) -> str:
    """One expression that matches these paths and no others, as PEFT matches it with the whole path."""
    return "|".join(re.escape(path) for path in sorted(paths)) if paths else "^$"


def modules(paths: Sequence[str], known: Collection[str]) -> list[str] | str:
    """The value of `target_modules` that names these paths and no others: a list, or else one expression.

    PEFT takes the entries of a list as ends of paths. A list would therefore name too much where another path
    of the module, out of `known`, ends like one of `paths`. Without known paths an expression is used, too.
    """
    others = {path[match.end() :] for path in known for match in re.finditer(r"\.", path)}
    return sorted(paths) if known and not others.intersection(paths) else one_of(paths)


def _at_the_end(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"
