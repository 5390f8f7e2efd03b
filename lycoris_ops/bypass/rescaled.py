"""Scale outputs by a learned factor without saving all of them for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..maths.scaling import scaled
from .geometry import Geometry

WEIGHTS = 1.75
"""The most bytes of an output that are saved, as a multiple of the weight's bytes in float32. A pass with the
changed weight saves twice the weight's bytes: before scaling and after."""
LITTLE = 1 << 22
"""Up to this many bytes of an output are always saved. Below this size recomputing costs more than saving."""
Weight = Callable[[], Tensor | None]
"""The weight (O, I, *kernel) of a module whose output is known to be W x + b alone; else None."""


def unknown() -> None:
    """The `Weight` of an output about which nothing is known."""


@dataclass(frozen=True, eq=False)
class PlainOutput:
    """An output that is W x + b and nothing else. Autograd saves x for other layers anyway."""

    geometry: Geometry
    weight: Tensor
    """W as (O, I, *kernel), which needs no gradient."""
    bias: Tensor | None
    """b, shaped like the output's channels."""

    @property
    def bytes_kept(self) -> int:
        return max(LITTLE, int(WEIGHTS * 4 * self.weight.numel()))

    def rows(self, values: Tensor) -> Tensor:
        """An input or output with its independent vectors, or pictures, along the first dimension."""
        return values if self.geometry.kernel else values.reshape(-1, values.shape[-1])


def leaner(
    geometry: Geometry, weight: Weight, bias: Tensor | None, y: Tensor, extra: Tensor
) -> PlainOutput | None:
    """What `rescaled` needs of a module, if it saves memory by recomputing a part of its output y."""
    # In a graph the size of y may be a symbol. Asking for the weight takes long, compared with a small layer.
    if not extra.requires_grad or torch.compiler.is_compiling() or y.nbytes <= LITTLE:
        return None
    known = weight()
    if known is None:
        return None
    product = PlainOutput(geometry, known, bias)
    return product if y.nbytes > product.bytes_kept else None


def rescaled(y: Tensor, extra: Tensor, x: Tensor, product: PlainOutput) -> Tensor:
    """y + (y - b) * extra for y = W x + b and a factor `extra` for each channel that needs a gradient.

    The gradient of `extra` is the sum of gradient * (y - b) over everything but the channels. At most
    `product.bytes_kept` bytes of y are saved for it. For the rest, it is the sum over the columns of W *
    dL/dW, where dL/dW follows from the gradient and x. This takes one more product as large as the module's.
    """
    learned: Any = _Rescaled
    return learned.apply(y, extra, x, product.weight, product)


class _Rescaled(torch.autograd.Function):
    """`scaled`, with derivatives of any order."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, extra: Tensor, x: Tensor, weight: Tensor, product: PlainOutput
    ) -> Tensor:
        rows = product.rows(y)
        kept = product.bytes_kept * len(rows) // max(1, y.nbytes)
        # A view would keep all of y. Autograd raises if the saved weight is changed before the backward pass.
        ctx.save_for_backward(rows[:kept].clone(), extra, x, weight)
        ctx.geometry, ctx.bias, ctx.rows = product.geometry, product.bias, product.rows
        return scaled(y, extra, product.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (kept, extra, x, weight), (gradient,) = ctx.saved_tensors, gradients
        to_y = scaled(gradient, extra, None) if ctx.needs_input_grad[0] else None
        rows, given = ctx.rows(gradient), ctx.rows(x)
        # Higher derivatives need all of x.
        first = 0 if torch.is_grad_enabled() else len(kept)
        total = torch.zeros_like(weight, dtype=x.dtype)
        ctx.geometry.add_weight_gradient(total, ctx.geometry.padded(given[first:]), rows[first:].to(x.dtype))
        to_extra = (total * weight).flatten(1).sum(1).view(extra.shape)
        if first:
            values = kept if ctx.bias is None else kept - ctx.bias
            to_extra = to_extra + (rows[:first] * values).sum_to_size(extra.shape)
        return to_y, to_extra.to(extra.dtype), None, None, None
