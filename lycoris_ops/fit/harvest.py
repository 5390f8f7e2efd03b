"""Bring the layers that a device has made to the CPU, many with one wait."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..algorithms import Layer
from ..maths.tensors import fetched

AT_ONCE = 64 << 20
"""Bytes on a device that are brought at once."""

Take = Callable[[Layer | None], object]


class Harvest:
    """Layers, or None for a change without one, that are handed on in order once they are on the CPU.

    `bring` hands on the rest.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Layer | None, Take]] = []

    def add(self, layer: Layer | None, take: Take) -> None:
        self._held.append((layer, take))
        away = sum(one.nbytes for one in self._tensors() if one.device.type != "cpu")
        if away == 0 or away >= AT_ONCE:
            self.bring()

    def bring(self) -> None:
        tensors = iter(fetched(*self._tensors()))
        held, self._held = self._held, []
        for layer, take in held:
            take(layer and layer.with_tensors({name: next(tensors) for name in layer.tensors()}))

    def _tensors(self) -> list[Tensor]:
        return [one for layer, _ in self._held if layer for one in layer.tensors().values()]
