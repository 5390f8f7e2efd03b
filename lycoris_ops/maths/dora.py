"""DoRA: each output or each input of a weight has a magnitude of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .recompute import transformed
from .tensors import shaped

# torch has no type hints for it.
_vector_norm = cast("Any", torch.linalg).vector_norm


def dora_factor(magnitude: Tensor, length: Tensor) -> Tensor:
    """magnitude / length, the factor by which DoRA multiplies each output or input of a direction.

    `length` is what `lengths` returns for the direction, and the result has its shape. An output or input
    of zeros has no direction: its factor is 0.
    Source: Liu et al., "DoRA" (2402.09353), eq. 5; the input axis as in LyCORIS before 3.2.
    """
    # `tiny` is the smallest normal number: a division by less can overflow.
    absent = length < torch.finfo(length.dtype).tiny
    # Divided by infinity: then the factor and its gradients are 0.
    return shaped(magnitude.to(length), length.shape) / length.masked_fill(absent, math.inf)


def lengths(weight: Tensor, axis: int) -> Tensor:
    """The norm of each output (axis 0) or input (axis 1) of a weight, as (O, 1, ...) or (1, I, 1, ...).

    The norm of an output is taken over all other dimensions, the norm of an input over outputs and kernel.
    """
    return _vector_norm(weight, dim=(1 - axis, *range(2, weight.ndim)), keepdim=True)


def changed_lengths(weight: Tensor, left: Tensor, right: Tensor, axis: int) -> Tensor:
    """`lengths` of weight + left @ right, with left (O, r) and right (r, K), without forming the sum.

    With w and b the rows of `weight` and `left` for one output, and A = `right`:
    ||w + b A|| = ||w|| sqrt(1 + (2 w A^T + b A A^T) b^T / ||w||^2). A change of zero leaves ||w|| as it is.
    All terms have the weight's dtype. The relative error is the dtype's rounding times
    (||w|| + ||b A||)^2 / ||w + b A||^2, large only where the change nearly cancels the weight.
    """
    flat = weight.flatten(1)
    if axis == 1:
        flat, left, right = flat.T, right.T, left.T
    length = lengths(weight, axis)
    absent = length < torch.finfo(length.dtype).tiny
    divisor = length.masked_fill(absent, 1)
    # An input has one row of `left` for each place of the kernel.
    each = divisor.flatten().repeat_interleave(len(left) // divisor.numel())[:, None]
    unit = left / each
    cross = 2 * (flat @ right.T) / each + unit @ (right @ right.T)
    share = (cross * unit).sum(1).view(divisor.numel(), -1).sum(1).view(divisor.shape)
    square = share + 1 - absent.to(share.dtype)
    none = square <= 0
    # The root of 0 has no gradient.
    return (divisor * square.masked_fill(none, 1).sqrt()).masked_fill(none, 0)


def learned_extra(
    magnitude: Tensor, weight: Tensor, up: Tensor, down: Tensor, scale: float, axis: int
) -> Tensor:
    """magnitude / ||V|| - 1 as a vector, for V = weight + scale * up @ down; -1 where V is zero.

    weight is (O, I, *kernel), up (O, r) and down (r, K). The norm is as in `lengths`. This is for training on
    an accelerator: both passes form V and neither keeps it. They need a third of the kernel launches of plain
    operations.
    """
    # An inference tensor cannot be saved for a backward pass.
    if transformed() or weight.is_inference():
        return _plain_extra(magnitude, weight, up, down, scale, axis)
    if not torch.is_grad_enabled():
        return _parts(magnitude, weight, up, down, scale, axis)[2].flatten() - 1
    learned: Any = _Extra
    return learned.apply(magnitude, weight, up, down, scale, axis)


def learned_changed(
    magnitude: Tensor, weight: Tensor, up: Tensor, down: Tensor, scale: float, axis: int
) -> Tensor:
    """magnitude * V / ||V||, for V = weight + scale * up @ down; 0 where V is zero.

    The arguments are as in `learned_extra`. The backward pass forms V again, so that only the result is kept
    where a module keeps its weight.
    """
    if transformed() or weight.is_inference() or not torch.is_grad_enabled():
        return _plain_changed(magnitude, weight, up, down, scale, axis)
    learned: Any = _Changed
    return learned.apply(magnitude, weight, up, down, scale, axis)


def _direction(weight: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    return torch.addmm(weight.flatten(1), up, down, alpha=scale)


def _product(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """factor * left @ right in one operation."""
    none = left.new_empty(left.shape[0], right.shape[1])
    return torch.addmm(none, left, right, beta=0, alpha=factor)


def _plain_extra(
    magnitude: Tensor, weight: Tensor, up: Tensor, down: Tensor, scale: float, axis: int
) -> Tensor:
    direction = _direction(weight, up, down, scale).view(weight.shape)
    return dora_factor(magnitude, lengths(direction, axis)).flatten() - 1


def _plain_changed(
    magnitude: Tensor, weight: Tensor, up: Tensor, down: Tensor, scale: float, axis: int
) -> Tensor:
    direction = _direction(weight, up, down, scale).view(weight.shape)
    return direction * dora_factor(magnitude, lengths(direction, axis))


def _parts(
    magnitude: Tensor, weight: Tensor, up: Tensor, down: Tensor, scale: float, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """V, ||V||, infinite where V is zero, and magnitude / ||V||; without gradients."""
    direction = torch.addmm(weight.flatten(1), up, down, alpha=scale)
    if weight.ndim > 2:
        direction = direction.view(weight.shape)
    length = _vector_norm(direction, dim=(1 - axis, *range(2, weight.ndim)), keepdim=True)
    # Without a direction the factor and its gradients are 0.
    length.masked_fill_(length < torch.finfo(length.dtype).tiny, math.inf)
    return direction, length, shaped(magnitude, length.shape) / length


class _Extra(torch.autograd.Function):
    """`learned_extra`, with derivatives of any order."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        magnitude, weight, up, down, ctx.scale, ctx.axis = inputs
        _, length, factor = _parts(*inputs)
        length, factor = length.flatten(), factor.flatten()
        ctx.save_for_backward(magnitude, weight, up, down, length, factor)
        return factor - 1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (magnitude, weight, up, down, length, factor), (gradient,) = ctx.saved_tensors, gradients
        if torch.is_grad_enabled():
            return _by_plain(_plain_extra, ctx, gradient)
        to_magnitude = gradient / length
        each = (to_magnitude * factor).div_(length)
        direction = _direction(weight, up, down, ctx.scale)
        if ctx.axis == 0:
            each = each[:, None]
            to_up = _product(direction, down.T, -ctx.scale).mul_(each)
            to_down = _product((up * each).T, direction, -ctx.scale)
        else:
            # One factor for all places of an input's kernel.
            each = each[:, None].expand(-1, direction.shape[1] // len(each)).reshape(-1)
            to_up = _product(direction, (down * each).T, -ctx.scale)
            to_down = _product(up.T, direction, -ctx.scale).mul_(each)
        return to_magnitude.view(magnitude.shape), None, to_up, to_down, None, None


class _Changed(torch.autograd.Function):
    """`learned_changed`, with derivatives of any order."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        magnitude, weight, up, down, ctx.scale, ctx.axis = inputs
        direction, length, factor = _parts(*inputs)
        ctx.save_for_backward(magnitude, weight, up, down, length, factor)
        return direction.mul_(factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (magnitude, weight, up, down, length, factor), (gradient,) = ctx.saved_tensors, gradients
        if torch.is_grad_enabled():
            return _by_plain(_plain_changed, ctx, gradient)
        direction = shaped(_direction(weight, up, down, ctx.scale), weight.shape)
        to_magnitude = (
            (gradient * direction).sum((1 - ctx.axis, *range(2, weight.ndim)), keepdim=True).div_(length)
        )
        # The part of the gradient along V changes the length of V, and not the result.
        across = gradient.sub(direction.mul_(to_magnitude / length))
        to_direction = across.mul_(factor * ctx.scale).flatten(1)
        to_up, to_down = to_direction.mm(down.T), up.T.mm(to_direction)
        return shaped(to_magnitude, magnitude.shape), None, to_up, to_down, None, None


def _by_plain(function: Callable[..., Tensor], ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of `magnitude`, `up` and `down` by plain operations, which have higher derivatives."""
    magnitude, weight, up, down, *_ = ctx.saved_tensors
    wanted = [tensor for tensor in (magnitude, up, down) if tensor.requires_grad]
    result = function(magnitude, weight, up, down, ctx.scale, ctx.axis)
    gradients = iter(torch.autograd.grad(result, wanted, gradient, create_graph=True))
    first, second, third = (
        next(gradients) if tensor.requires_grad else None for tensor in (magnitude, up, down)
    )
    return first, None, second, third, None, None


def magnitude_axis(magnitude: Sequence[int], weight: Sequence[int]) -> int | None:
    """The axis of a weight that a DoRA magnitude is for: 0 for outputs, 1 for inputs, None for neither.

    Both arguments are shapes. The number of values decides: O of them are for outputs, I for inputs. Where
    both axes of the weight have the same size n, (n,) and (n, 1, ...) mean outputs and (1, n, ...) means
    inputs.
    """
    size = math.prod(magnitude)
    inputs_first = len(magnitude) > 1 and magnitude[0] == 1
    for axis in (1, 0) if inputs_first else (0, 1):
        if axis < len(weight) and weight[axis] == size:
            return axis
    return None
