"""Dense changes: sum the matrices, then multiply by the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...changes.forms import Dense
from ...maths.tensors import compute_dtype
from ..geometry import Geometry
from .forward import Item, Strengths, outliving, plus_product

FORMS = (Dense,)


class DenseForward:
    """y += (sum of strength * values) x."""

    reads = None

    def __init__(
        self, geometry: Geometry, items: Sequence[Item], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.geometry = geometry
        self.full = [(item.form.values.to(device, dtype).contiguous(), item.slot) for item in items]
        self._held: tuple[tuple[float, ...], Tensor] | None = None

    def add(self, y: Tensor, x: Tensor, strengths: Strengths) -> Tensor:
        if len(self.full) == 1:
            values, slot = self.full[0]
            return self._multiply(y, x, values, strengths[slot])
        return self._multiply(y, x, self._sum(strengths), 1.0)

    def _multiply(self, y: Tensor, x: Tensor, values: Tensor, strength: float) -> Tensor:
        if self.geometry.kernel:
            return y.add_(self.geometry.product(x, values), alpha=strength)
        return plus_product(y, x, values.T, strength)

    def _sum(self, strengths: Strengths) -> Tensor:
        """The weighted sum of all matrices, cached until the strengths change."""
        key = tuple(strengths)
        if self._held is None or self._held[0] != key:
            first, _ = self.full[0]
            with outliving():
                # In float32 or float64, so that the sum is rounded only once.
                total = torch.zeros(first.shape, dtype=compute_dtype(first.dtype), device=first.device)
                for values, slot in self.full:
                    total.add_(values, alpha=strengths[slot])
                self._held = (key, total.to(first.dtype))
        return self._held[1]


FORWARD = DenseForward
