"""Freeze the parameters of models, for one or several networks at once."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

Flags = dict[str, tuple[nn.Parameter, bool]]
"""The parameters of a model by name with their `requires_grad`, as a network found them."""

_held: Any = WeakIdKeyDictionary()
"""For each frozen parameter its flag before the first network, and how many networks hold it."""


def freeze(module: nn.Module) -> Flags:
    """Freeze a model's parameters until `thaw` has undone each `freeze` of them. Returns their flags."""
    flags: Flags = {}
    for name, parameter in module.named_parameters():
        flags[name] = parameter, parameter.requires_grad
        first, count = _held.get(parameter, (parameter.requires_grad, 0))
        _held[parameter] = first, count + 1
        # Not by `requires_grad_`, which parameters of a lazy module refuse before its first pass.
        parameter.requires_grad = False
    return flags


def thaw(module: nn.Module, flags: Flags) -> None:
    """Undo the `freeze` that returned these flags. The last `thaw` of a parameter restores its own flag.

    A parameter that was put in its place meanwhile, as `fully_shard` does, gets the flag too.
    """
    now = dict(module.named_parameters()) if flags else {}
    for name, (parameter, own) in flags.items():
        # A copied model is held only by its copied network.
        first, count = _held.get(parameter, (own, 1))
        if count > 1:
            _held[parameter] = first, count - 1
            continue
        _held.pop(parameter, None)
        for held in {id(value): value for value in (parameter, now.get(name, parameter))}.values():
            held.requires_grad = first
