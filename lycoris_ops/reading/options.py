"""The options of the algorithms, which no tensor of a file holds, and the values that they may have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..algorithms import ALGORITHMS, Layer
from ..algorithms.base import ALPHA, DERIVED, DIFF_B, SET_BIAS, field_of
from ..algorithms.oftv2 import MOST_TERMS
from ..errors import LycorisError

Check = tuple[Callable[[Any], bool], str]
"""A test of an option's value, and a description in words of the values that pass it."""

CHECKS: dict[str, Check] = {
    "terms": (
        lambda value: _is_whole(value) and 0 <= value <= MOST_TERMS,
        f"a whole number up to {MOST_TERMS}, 0 for the exact rotation",
    ),
    "last": (lambda value: _is_whole(value) and value in (1, 2), "1 or 2"),
    "constraint": (
        lambda value: (
            value is None or (isinstance(value, int | float) and math.isfinite(value) and value > 0)
        ),
        "a number above 0, or None",
    ),
    "feedforward": (lambda value: value is None or isinstance(value, bool), "True, False or None"),
}
"""The checks of options that are numbers or flags. An option that is a choice among words has none here: its
algorithm declares the words as a `Literal`."""


@cache
def options_of(algorithm: type[Layer]) -> set[str]:
    """The options of an algorithm: the fields of its layers that no tensor of a file fills."""
    tensors = {field_of(suffix) for suffix in algorithm.suffixes()}
    # Derived fields are set on layers that are made from others, and not by a user.
    fields = {field.name for field in dataclasses.fields(algorithm) if field.metadata != DERIVED}
    return fields - tensors - {ALPHA, DIFF_B, SET_BIAS}


def check_options(options: Mapping[str, Any], path: str) -> None:
    """Raise LycorisError for an option that no algorithm has, or for a value that the option cannot have."""
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
    """The check of an option whose type is a `Literal` of words, perhaps with None."""
    declared = get_type_hints(algorithm)[option]
    # `Literal[...]` itself, or `Literal[...] | None`, whose parts are its arguments.
    parts = (declared, *get_args(declared))
    words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    optional = type(None) in parts
    shown = ", ".join([*words, *(["None"] if optional else [])])
    return lambda value: value in words or (optional and value is None), shown


def _is_whole(value: Any) -> bool:
    # Python takes True and False for whole numbers.
    return isinstance(value, int) and not isinstance(value, bool)
