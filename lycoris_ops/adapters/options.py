"""Options of the algorithms that no tensor of a file holds, and the values that they may have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..algorithms import ALGORITHMS, Layer
from ..algorithms.base import ALPHA, DERIVED, DIFF_B, field_of
from ..errors import LycorisError

Check = tuple[Callable[[Any], bool], str]
"""Whether a value may be, and in words which may."""

CHECKS: dict[str, Check] = {
    "terms": (lambda value: _is_whole(value) and value >= 0, "a whole number, 0 for the exact rotation"),
    "last": (lambda value: _is_whole(value) and value in (1, 2), "1 or 2"),
    "constraint": (
        lambda value: (
            value is None or (isinstance(value, int | float) and math.isfinite(value) and value > 0)
        ),
        "a number above 0, or None",
    ),
    "feedforward": (lambda value: value is None or isinstance(value, bool), "True, False or None"),
}
"""Those of options that are no choice among words, which their algorithms declare."""


@cache
def options_of(algorithm: type[Layer]) -> set[str]:
    """The fields of a layer that no tensor of a file fills."""
    tensors = {field_of(suffix) for suffix in algorithm.suffixes()}
    fields = {field.name for field in dataclasses.fields(algorithm) if field.metadata != DERIVED}
    return fields - tensors - {ALPHA, DIFF_B}


def check_options(options: Mapping[str, Any], path: str) -> None:
    """Raise LycorisError for an option that no algorithm has, or for a value that it cannot have."""
    known = {name: kind for kind in ALGORITHMS.values() for name in options_of(kind)}
    if unknown := sorted(set(options) - set(known)):
        raise LycorisError(
            "an unknown option", file=path, got=", ".join(unknown), expected=", ".join(sorted(known))
        )
    for name, value in options.items():
        may_be, known_values = CHECKS.get(name) or _choice(known[name], name)
        if not may_be(value):
            raise LycorisError(
                f"an unknown value of the option {name}", file=path, got=repr(value), expected=known_values
            )


def _choice(algorithm: type[Layer], option: str) -> Check:
    """The words that the algorithm declares as the option's values."""
    declared = get_type_hints(algorithm)[option]
    parts = (declared, *get_args(declared))
    words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    optional = type(None) in parts
    shown = ", ".join([*words, *(["None"] if optional else [])])
    return lambda value: value in words or (optional and value is None), shown


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
