"""The adapter algorithms. A module in this folder that defines a `Layer` subclass registers it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from torch import Tensor

from ..algebra import Shape
from .base import Layer

__all__ = ["ALGORITHMS", "Layer", "detect"]


def _discover() -> dict[str, type[Layer]]:
    found: dict[str, type[Layer]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for value in vars(module).values():
            if not isinstance(value, type) or not issubclass(value, Layer):
                continue
            if value.__module__ != module.__name__ or "algorithm" not in vars(value):
                continue
            if value.algorithm in found:
                raise TypeError(f"two classes register the algorithm {value.algorithm!r}")
            found[value.algorithm] = value
    return found


ALGORITHMS: dict[str, type[Layer]] = _discover()
"""Algorithm name to class."""


def detect(tensors: Mapping[str, Tensor] | Mapping[str, Shape]) -> type[Layer] | None:
    """The algorithm whose layer has exactly these suffix-named tensors, or None."""
    for algorithm in ALGORITHMS.values():
        if algorithm.accepts(tensors):
            return algorithm
    return None
