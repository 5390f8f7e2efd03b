"""Records of the architectures, one a file. A file added here is registered.

A file defines ARCHITECTURE, see `record.Architecture`. The tables of names are in the notation of `notation`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ...discovery import discover
from ...maths.shapes import Shape
from .notation import Model, Slice, Slices, recognised
from .record import Architecture, Signal, Tokens

__all__ = [
    "ARCHITECTURES",
    "ASIDE",
    "Architecture",
    "Signal",
    "Slice",
    "Slices",
    "Tokens",
    "recognise",
    "signals_of",
    "tokens_of",
]

ARCHITECTURES: Mapping[str, Architecture] = {
    module.__name__.rpartition(".")[2]: module.ARCHITECTURE
    for module in discover(__name__)
    if hasattr(module, "ARCHITECTURE")
}
"""Every record, by the name of its file."""
_RECORDS = tuple(ARCHITECTURES.values())


def recognise(shapes: Mapping[str, Shape]) -> Model | None:
    """The model with these layers, and its names in other tools; None for an unknown architecture.

    shapes: the shapes of its weights by path.
    """
    return recognised((layout for record in _RECORDS for layout in record.layouts), shapes)


def tokens_of(shapes: Mapping[str, Shape]) -> Mapping[str, Tokens]:
    """The tokens of each layer of a model, by path; empty where they are not known.

    shapes: the shapes of its weights by path.
    """
    model = recognise(shapes)
    record = next((known for known in _RECORDS if model is not None and model.layout in known.layouts), None)
    if record is None or not record.tokens:
        return {}
    kinds = {_below(path): kind for path, kind in record.tokens.items()}
    return {
        path: next((kind for expression, kind in kinds.items() if expression.search(path)), "text")
        for path in shapes
    }


def _below(path: str) -> re.Pattern[str]:
    """A pattern for the paths at or below this one, in a model or in a component of one."""
    numbered = re.escape(path).replace(r"\*", r"\d+")
    return re.compile(rf"(?:^|\.){numbered}(?:\.|$)")


ASIDE: Mapping[re.Pattern[str], str] = {
    _below(path): why for record in _RECORDS for path, why in record.aside.items()
}
"""The layers that the records set aside, with the reasons, see `Architecture.aside`."""

_SIGNALS: Mapping[re.Pattern[str], Signal] = {
    _below(path): signal for record in _RECORDS for path, signal in record.signals.items()
}


def signals_of(paths: Iterable[str]) -> Mapping[str, Signal]:
    """The layers that make the picture, and those that make the sound; empty unless there are both."""
    paths = tuple(paths)
    # Most models have no sound, and there are many layers.
    if not any("audio" in path for path in paths):
        return {}
    signals: dict[str, Signal] = {
        path: signal for path in paths for known, signal in _SIGNALS.items() if known.search(path)
    }
    return signals if len({*signals.values()}) > 1 else {}
