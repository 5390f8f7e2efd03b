"""Freeze the parameters of models, for one or several networks at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

Flags = dict[nn.Parameter, bool]
"""`requires_grad` of parameters, as a network found it."""

_held: Any = WeakIdKeyDictionary()
"""For each frozen parameter its flag before the first network, and how many networks hold it."""


def freeze(parameters: Iterable[nn.Parameter]) -> Flags:
    """Freeze these parameters until `thaw` has undone each `freeze` of them. Returns their flags."""
    flags: Flags = {}
    for parameter in parameters:
        flags[parameter] = parameter.requires_grad
        first, count = _held.get(parameter, (parameter.requires_grad, 0))
        _held[parameter] = first, count + 1
        # Not by `requires_grad_`, which parameters of a lazy module refuse before its first pass.
        parameter.requires_grad = False
    return flags


def thaw(flags: Mapping[nn.Parameter, bool]) -> None:
    """Undo the `freeze` that returned these flags. The last `thaw` of a parameter restores its own flag."""
    for parameter, own in flags.items():
        # A copied model is held only by its copied network.
        first, count = _held.get(parameter, (own, 1))
        if count > 1:
            _held[parameter] = first, count - 1
            continue
        _held.pop(parameter, None)
        parameter.requires_grad = first
