"""Outputs scaled by a learned factor, a part of which the backward pass computes again."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..maths.recompute import transformed
from ..maths.shapes import Shape
from ..maths.tensors import compute_dtype

WEIGHTS = 1.75
"""How many bytes of an output are kept, as a multiple of those of the weight in float32. A pass by the
changed weight keeps that twice: before it is scaled and after."""


@dataclass(frozen=True)
class Again:
    """How W x + b is computed again from x."""

    run: Callable[[Tensor], Tensor]
    weight: Shape
    kernel: bool
    """Whether it is a convolution, of which whole items of a batch are computed, and not single vectors."""

    @property
    def bytes_kept(self) -> int:
        return int(WEIGHTS * self._weight_bytes)

    @property
    def _weight_bytes(self) -> int:
        return 4 * torch.Size(self.weight).numel()

    def is_leaner(self, y: Tensor, extra: Tensor) -> bool:
        """Whether a backward pass keeps less by computing a part of y again."""
        # torch.compile does not know the bytes of an output of any size.
        return not transformed() and extra.requires_grad and y.nbytes > self.bytes_kept

    def rows(self, values: Tensor) -> Tensor:
        """An input or output with what can be computed alone along its first dimension."""
        return values if self.kernel else values.reshape(-1, values.shape[-1])

    def parts(self, x: Tensor, first: int, row: int) -> Generator[tuple[slice, Tensor]]:
        """W x + b from the row `first` on, in parts of about the weight's bytes; a row has `row` bytes."""
        given = self.rows(x)
        step = max(1, self._weight_bytes // max(1, row))
        for start in range(first, len(given), step):
            part = slice(start, start + step)
            yield part, self.rows(self.run(given[part]))


def rescaled(y: Tensor, extra: Tensor, x: Tensor, again: Again) -> Tensor:
    """y + y * extra for y = W x + b and a factor `extra` for each channel that needs a gradient.

    The gradient of `extra` is the sum of gradient * y over all but the channels. Of y autograd keeps
    `again.bytes_kept` at most, and computes the rest again, under the autocast of this call.
    """
    kind, run = y.device.type, again.run
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def same(values: Tensor) -> Tensor:
        with torch.autocast(kind, dtype, enabled=enabled):
            return run(values)

    learned: Any = _Rescaled
    return learned.apply(y, extra, x, replace(again, run=same))


def scaled(y: Tensor, extra: Tensor) -> Tensor:
    """y + y * extra, in as few passes over y as there can be."""
    if y.dtype == compute_dtype(y.dtype):
        return y * (1 + extra)
    # 1 + extra would have fewer digits than extra.
    return torch.addcmul(y, y, extra)


class _Rescaled(torch.autograd.Function):
    """`scaled`, with derivatives of any order and in both modes."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, extra: Tensor, x: Tensor, again: Again) -> Tensor:
        rows = again.rows(y)
        kept = again.bytes_kept * len(rows) // max(1, y.nbytes)
        # A view would keep all of y.
        ctx.save_for_backward(rows[:kept].clone(), extra, x)
        ctx.save_for_forward(y, extra)
        ctx.again = again
        return scaled(y, extra)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (kept, extra, x), (gradient,), again = ctx.saved_tensors, gradients, ctx.again
        to_y = scaled(gradient, extra) if ctx.needs_input_grad[0] else None
        if torch.is_grad_enabled():
            # Further derivatives go through all of y.
            return to_y, (gradient * again.run(x)).sum_to_size(extra.shape), None, None
        rows = again.rows(gradient)
        total = (rows[: len(kept)] * kept).sum_to_size(extra.shape).to(compute_dtype(extra.dtype))
        for part, y in again.parts(x, len(kept), gradient.nbytes // max(1, len(rows))):
            total += (rows[part] * y).sum_to_size(extra.shape)
        return to_y, total.to(extra.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        y, extra = ctx.saved_tensors
        of_y, of_extra = tangents[:2]
        total = y.new_zeros(()) if of_y is None else scaled(of_y, extra)
        return total if of_extra is None else total + y * of_extra
