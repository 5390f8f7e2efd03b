"""Dense and sparse changes: the sum of their matrices, multiplied with the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...changes.forms import Dense, Sparse
from ...maths.tensors import compute_dtype
from ..geometry import Geometry
from .forward import Item, Strengths, buffer, outliving, plus_product, recorded

FORMS = (Dense, Sparse)


class DenseForward:
    """y += (sum of strength * values) x, with sparse values added to the sum at their places."""

    reads = None

    def __init__(
        self, geometry: Geometry, items: Sequence[Item], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.geometry = geometry
        full = [item for item in items if isinstance(item.form, Dense)]
        sparse = [item for item in items if isinstance(item.form, Sparse)]
        self.full = [(item.form.values.to(device, dtype).contiguous(), item.slot) for item in full]
        self.sparse = [
            (
                item.form.row.to(device),
                item.form.column.to(device),
                item.form.values.to(device, dtype),
                item.slot,
            )
            for item in sparse
        ]
        self.rows = len(self.full[0][0]) if self.full else int(sparse[0].form.shape[0])
        self._held: tuple[tuple[float, ...], Tensor] | None = None

    def add(self, y: Tensor, x: Tensor, strengths: Strengths) -> Tensor:
        if len(self.full) == 1 and not self.sparse:
            values, slot = self.full[0]
            return self._multiply(y, x, values, strengths[slot])
        if self.full:
            return self._multiply(y, x, self._sum(strengths), 1.0)
        return self._multiply(y, x, self._place(self._empty(x), strengths), 1.0)

    def _multiply(self, y: Tensor, x: Tensor, values: Tensor, strength: float) -> Tensor:
        if self.geometry.kernel:
            return y.add_(self.geometry.product(x, values), alpha=strength)
        return plus_product(y, x, values.T, strength)

    def _empty(self, x: Tensor) -> Tensor:
        """Zeros of the matrix's shape, in a buffer that all layers use unless gradients are recorded."""
        shape = (self.rows, self.geometry.columns)
        if recorded(*(values for _, _, values, _ in self.sparse)):
            return torch.zeros(shape, dtype=x.dtype, device=x.device)
        return buffer("sparse", shape, x).zero_()

    def _sum(self, strengths: Strengths) -> Tensor:
        """The sum of all values at these strengths, kept until the strengths change."""
        key = tuple(strengths)
        if self._held is None or self._held[0] != key:
            first, _ = self.full[0]
            with outliving():
                # Added up in float32 or float64, so that the sum is rounded once.
                total = torch.zeros(first.shape, dtype=compute_dtype(first.dtype), device=first.device)
                for values, slot in self.full:
                    total.add_(values, alpha=strengths[slot])
                self._held = (key, self._place(total, strengths).to(first.dtype))
        return self._held[1]

    def _place(self, matrix: Tensor, strengths: Strengths) -> Tensor:
        for row, column, values, slot in self.sparse:
            placed = values.to(matrix.dtype) * strengths[slot]
            matrix.index_put_((row, column), placed, accumulate=True)
        return matrix


FORWARD = DenseForward
