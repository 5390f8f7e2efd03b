"""The modules of a model by name; those that PEFT has wrapped have the names that they had before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import nn

SHELLS = {"PeftModel": "base_model", "BaseTuner": "model", "BaseTunerLayer": "base_layer"}
"""PEFT's classes around a model and around its layers, with the name of what they are around.

All else in such a layer is PEFT's adapter, and no part of the model."""
COPIED = "AuxiliaryTrainingWrapper"
"""PEFT's class around a layer that it trains as a whole copy."""


def named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A model and the modules inside, by path; one under two names is there twice."""
    return _named(module, "")


def _named(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    kinds = {kind.__name__ for kind in type(module).__mro__}
    inner = next((name for kind, name in SHELLS.items() if kind in kinds), None)
    # Not `named_children`: it would leave out a module's second name.
    held: Mapping[str, nn.Module | None] = cast("Any", module)._modules
    found = None if inner is None else held.get(inner)
    if found is not None:
        yield from _named(found, path)
        return
    yield path, module
    for name, child in held.items():
        if child is not None and COPIED not in kinds:
            yield from _named(child, f"{path}.{name}" if path else name)
