"""The options of the algorithms, which no tensor of a file holds, and their valid values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..algorithms import ALGORITHMS, Layer
from ..algorithms.axes import ALPHA, DIFF_B, SET_BIAS, field_of
from ..errors import LycorisError

Check = tuple[Callable[[Any], bool], str]
"""A test of an option's value, and the valid values in words."""


@cache
def options_of(algorithm: type[Layer]) -> dict[str, Check]:
    """The checks of an algorithm's options by name. Options are the fields that no tensor of a file fills."""
    tensors = {field_of(suffix) for suffix in algorithm.table.suffixes}
    others = tensors | {ALPHA, DIFF_B, SET_BIAS}
    return {
        field.name: _check(algorithm, field)
        for field in dataclasses.fields(algorithm)
        if field.name not in others
    }


def check_options(options: Mapping[str, Any], path: str) -> None:
    """Raise LycorisError for an option that no algorithm has, or for an invalid value."""
    known = {name: check for kind in ALGORITHMS.values() for name, check in options_of(kind).items()}
    if unknown := sorted(set(options) - set(known)):
        raise LycorisError(
            "E-load-option-unknown", file=path, got=", ".join(unknown), expected=", ".join(sorted(known))
        )
    for name, value in options.items():
        may_be, known_values = known[name]
        if not may_be(value):
            raise LycorisError(
                "E-load-option-value-unknown", file=path, name=name, got=repr(value), expected=known_values
            )


def _check(algorithm: type[Layer], option: dataclasses.Field[Any]) -> Check:
    """The check that an option declares, else one for its type: a `Literal` of words, perhaps with None."""
    if "suits" in option.metadata:
        return option.metadata["suits"], option.metadata["expected"]
    declared = get_type_hints(algorithm)[option.name]
    # `Literal[...]` itself, or `Literal[...] | None`, whose parts are its arguments.
    types = (declared, *get_args(declared))
    words = [word for kind in types if get_origin(kind) is Literal for word in get_args(kind)]
    optional = type(None) in types
    shown = ", ".join([*words, *(["None"] if optional else [])])
    return lambda value: value in words or (optional and value is None), shown
