"""The adapter algorithms. A module in this folder that defines a `Layer` subclass registers it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import TypeVar

from torch import Tensor

from ..discovery import discover_classes
from ..maths.shapes import Shape
from .base import Layer, Sharing
from .checks import a_layer

Contract = TypeVar("Contract", bound=Layer)

__all__ = ["ALGORITHMS", "Layer", "check", "declaring", "detect", "explain"]


def _discover() -> dict[str, type[Layer]]:
    kinds: dict[str, type[Layer]] = {}
    for kind in discover_classes(__name__, Layer):
        if "algorithm" not in vars(kind):
            continue
        if kind.algorithm in kinds:
            raise TypeError(f"two classes register the algorithm {kind.algorithm!r}")
        check(kind)
        kinds[kind.algorithm] = kind
    return kinds


def check(kind: type[Layer]) -> None:
    """Raise TypeError where a kind lacks what every kind states, with all that is missing.

    That is `algorithm`, `table`, `in_comfy`, a field for each tensor of the table, a formula (`additive`, or
    `sides` where the change depends on the weight), and what its base classes leave open, such as `init`.
    """
    missing = [name for name in ("algorithm", "table", "in_comfy") if not hasattr(kind, name)]
    missing += sorted(getattr(kind, "__abstractmethods__", ()))
    if kind.additive is Layer.additive and kind.sides is Layer.sides:
        missing.append("its formula (additive or sides)")
    if "table" not in missing:
        known = {field.name for field in fields(kind)}
        missing += [f"the field {name}" for name in sorted(set(kind.table.fields.values()) - known)]
        if kind.table.shared and not issubclass(kind, Sharing):
            missing.append("its layers alone (Sharing)")
    if missing:
        raise TypeError(f"{kind.__name__} cannot be registered without {', '.join(missing)}")


ALGORITHMS: dict[str, type[Layer]] = _discover()
"""The class of every algorithm, by the name in its `algorithm`."""


def declaring(contract: type[Contract]) -> dict[str, type[Contract]]:
    """The kinds that declare a contract (`Trained`, `Fitted` or `Planned`), by name."""
    return {name: kind for name, kind in ALGORITHMS.items() if issubclass(kind, contract)}


def detect(tensors: Mapping[str, Tensor] | Mapping[str, Shape]) -> type[Layer] | None:
    """The class that reads exactly these tensors, or None.

    The tensors, or their shapes, are given by key suffix, such as `lora_up.weight`.
    """
    named = _named(frozenset(tensors))
    return next((algorithm for algorithm in named if algorithm.accepts(tensors)), None)


@lru_cache(maxsize=1024)
def _named(suffixes: frozenset[str]) -> tuple[type[Layer], ...]:
    """The algorithms that have a variant of exactly these suffixes.

    Cached, because the thousands of layers of a file have the same few sets of suffixes.
    """
    return tuple(kind for kind in ALGORITHMS.values() if kind.table.has_names(suffixes))


def explain(names: frozenset[str]) -> str:
    """Why no algorithm reads a layer with these suffixes, in words for the report."""
    variants = [(kind, variant) for kind in ALGORITHMS.values() for variant in kind.table.variants]
    complete = {kind.algorithm: kind for kind, variant in variants if variant <= names}
    read = frozenset[str]().union(*(kind.table.suffixes for kind in complete.values()))
    # A whole layer is there, and beside it suffixes that its algorithm does not read.
    if unknown := sorted(names - read) if complete else []:
        other = sorted(
            {kind.algorithm for kind, variant in variants if variant & names.intersection(unknown)}
        )
        if other:
            return f"it holds two kinds at once, {' and '.join(sorted(complete))} and {other[0]}"
        return f"{a_layer(' or '.join(sorted(complete)))} with unknown tensors: {', '.join(unknown)}"
    # An algorithm has these suffixes, so it refuses the number of dimensions.
    if named := _named(names):
        known = " or ".join(f"the {kind.table.dimensions} of {a_layer(kind.algorithm)}" for kind in named)
        return f"its {_listed(named[0].table.variants[0])} has a different number of dimensions than {known}"
    if len(complete) > 1:
        return f"it holds two kinds at once, {' and '.join(sorted(complete))}"
    # One algorithm reads every suffix, but they belong to several of its variants.
    if complete:
        (kind,) = complete.values()
        first = max(
            (variant - kind.table.extras for variant in kind.table.variants if variant <= names), key=len
        )
        rest = names - first - kind.table.extras
        return f"{a_layer(kind.algorithm)} with both {_listed(first)} and {_listed(rest)}"
    # Nothing is whole: guess the most complete variant.
    near = [(len(variant & names) / len(variant), kind, variant) for kind, variant in variants]
    share, kind, variant = max(near, key=lambda item: (item[0], -len(item[2])))
    if share > 0:
        return f"{a_layer(kind.algorithm)} without {_listed(variant - names)}"
    return f"no algorithm reads the tensors {_listed(names)}"


def _listed(suffixes: Collection[str]) -> str:
    return ", ".join(sorted(suffixes))
