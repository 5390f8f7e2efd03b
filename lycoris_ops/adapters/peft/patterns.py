"""How PEFT's configurations name layers: expressions over the paths of a module."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

Number = TypeVar("Number", int, float)


def check(pattern: str) -> str:
    """The pattern itself. Raises re.error where it is no expression."""
    re.compile(_at_the_end(pattern))
    return pattern


def override(patterns: Mapping[str, Number], path: str, default: Number) -> Number:
    """The value of the first pattern that a path matches.

    PEFT's rule: the expression must match the end of the path, from the start of a name on.
    """
    matching = (value for pattern, value in patterns.items() if re.match(_at_the_end(pattern), path))
    return next(matching, default)


def ends(names: str | Sequence[str], path: str) -> bool:
    """Whether a path is among `names`: one expression for the whole path, or ends of paths in a list."""
    if isinstance(names, str):
        return re.match(rf"^({names})$", path) is not None
    return path.endswith(tuple(names))


def alone(path: str) -> str:
    """A pattern for this path alone, where PEFT would take the path for the end of any other as well."""
    return f"^{re.escape(path)}"


def one_of(paths: Sequence[str]) -> str:
    """One expression for these paths and no others."""
    return "|".join(re.escape(path) for path in sorted(paths)) if paths else "^$"


def modules(paths: Sequence[str], known: Collection[str]) -> list[str] | str:
    """The paths as a list, or as one expression where a list would mean more.

    PEFT takes what is listed for ends of paths: so some path of the module may end like that, and does
    perhaps where the module's paths are not known.
    """
    others = {path[match.end() :] for path in known for match in re.finditer(r"\.", path)}
    return sorted(paths) if known and not others.intersection(paths) else one_of(paths)


def _at_the_end(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"
