"""Layers on the parts of one parameter, such as the experts of a mixture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .hook import check_present, input_of, values_of
from .rebuilt import Rebuilt


class Stacked:
    """A parameter (E, O, I) of a module where each part (O, I) is changed by its own layer.

    In a pass the module has the changed parameter in place of its own, formed once from all parts.
    """

    def __init__(self, module: nn.Module, weight: str, path: str | None = None) -> None:
        self.module = module
        self.weight = weight
        self.path = path
        """The name of the parameter in errors."""
        self.parts: dict[int, StackedPart] = {}
        """The layers that act, by the number of their part."""
        self._handles: list[RemovableHandle] = []
        self._hidden: list[Any] = []

    def put(self, number: int, part: StackedPart) -> None:
        """Let a layer act on a part."""
        self.parts[number] = part
        if not self._handles:
            self._handles = [
                self.module.register_forward_pre_hook(self._before, with_kwargs=True),
                self.module.register_forward_hook(self._after, always_call=True, prepend=True),
            ]

    def take(self, number: int) -> None:
        """Take the layer of a part away."""
        self.parts.pop(number, None)
        if not self.parts:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = input_of(args, kwargs)
        own = vars(module)
        before = own.get(self.weight)
        self._hidden.append(before)
        values = values_of(module, self.weight, self.path)
        check_present(values, x.device, self.path)
        # In order, so that dropouts draw the same numbers in each run.
        deltas = {number: self.parts[number].change(values[number], x) for number in sorted(self.parts)}
        changes = {number: delta for number, delta in deltas.items() if delta is not None}
        if changes or any(part.always for part in self.parts.values()):
            # Another network may have changed some parts already.
            rows = list((values if before is None else before).unbind())
            for number, change in changes.items():
                rows[number] = torch.add(rows[number].to(change), change).to(values.dtype)
            own[self.weight] = torch.stack(rows)

    def _after(self, module: nn.Module, args: tuple[Any, ...], y: Any) -> None:
        if self._hidden:
            before, own = self._hidden.pop(), vars(module)
            own.pop(self.weight, None)
            if before is not None:
                own[self.weight] = before


class StackedPart(Rebuilt):
    """A layer on one part of a parameter. See `Stacked`."""

    def __init__(self, stacked: Stacked, number: int, layer: Any, strength: float, **options: Any) -> None:
        super().__init__(stacked.module, layer, strength, weight=stacked.weight, **options)
        self._whole, self._number = stacked, number

    def attach(self) -> StackedPart:
        self._whole.put(self._number, self)
        return self

    def remove(self) -> None:
        self._whole.take(self._number)

    def change(self, weight: Tensor, x: Tensor) -> Tensor | None:
        """The change of a part in a pass with this input, in a wide dtype; None for no change."""
        if self.before_pass is not None:
            self.before_pass(x)
        if self.strength == 0.0:
            return None
        delta = self.change_of(weight).delta
        return delta if delta is None or self.strength == 1.0 else delta * self.strength
