"""The modules of a model by name, without wrappers: inside them modules keep their own names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import nn

from ..errors import LycorisError

SHELLS = {
    "PeftModel": "base_model",
    "BaseTuner": "model",
    "BaseTunerLayer": "base_layer",
    "OptimizedModule": "_orig_mod",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "DistributedDataParallel": "module",
}
"""The wrapper classes of PEFT and torch, with the attribute that holds what they wrap.

All else in a wrapper of PEFT is its adapter, and no part of the model."""
COPIED = "AuxiliaryTrainingWrapper"
"""PEFT's wrapper around a module that it trains as a whole copy. Nothing inside is listed."""


def named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A model and the modules inside, by path. A module under two names is listed twice.

    Raises LycorisError for what is no module.
    """
    if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise LycorisError("E-model-not-a-module", got=type(module).__name__)
    return _named(module, "")


def _named(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    kinds = {kind.__name__ for kind in type(module).__mro__}
    inner = next((name for kind, name in SHELLS.items() if kind in kinds), None)
    # Not `named_children`: it would leave out a module's second name.
    held: Mapping[str, nn.Module | None] = cast("Any", module)._modules
    inside = None if inner is None else held.get(inner)
    if inside is not None:
        yield from _named(inside, path)
        return
    yield path, module
    for name, child in held.items():
        if child is not None and COPIED not in kinds:
            yield from _named(child, f"{path}.{name}" if path else name)
