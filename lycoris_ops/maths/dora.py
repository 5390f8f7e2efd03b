"""DoRA: each output or each input of a weight has a magnitude of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .tensors import norm


def dora_factor(magnitude: Tensor, length: Tensor) -> Tensor:
    """magnitude / length, the factor by which DoRA multiplies each output or input of a direction.

    `length` is what `lengths` returns for the direction, and the result is of its shape. An output or input
    of zeros has no direction: its factor is 0.
    Source: Liu et al., "DoRA" (2402.09353), eq. 5; the input axis by LyCORIS before 3.2.
    """
    # `tiny` is the smallest normal number: a division by less can overflow.
    absent = length < torch.finfo(length.dtype).tiny
    met = magnitude.to(length.device, length.dtype).reshape(length.shape)
    # By 1 and not by 0, whose gradients would be NaN.
    return (met / length.masked_fill(absent, 1)).masked_fill(absent, 0)


def lengths(weight: Tensor, axis: int) -> Tensor:
    """The norm of each output (axis 0) or input (axis 1) of a weight, as (O, 1, ...) or (1, I, 1, ...).

    The norm of an output is taken over all other dimensions, that of an input over outputs and kernel.
    """
    shape = [1] * weight.ndim
    shape[axis] = -1
    return norm(weight.transpose(0, axis).flatten(1), 1).reshape(shape)


def changed_lengths(weight: Tensor, left: Tensor, right: Tensor, axis: int) -> Tensor:
    """`lengths` of weight + left @ right, with left (O, r) and right (r, K), without forming the sum.

    For an output with the row w of the weight and b of `left` it is, with A for `right`,
    ||w + b A|| = ||w|| sqrt(1 + (2 w A^T + b A A^T) b^T / ||w||^2). A change of zero leaves ||w|| as it is.
    The terms are of the dtype of the weight, so that the relative error is that of the dtype times
    (||w|| + ||b A||)^2 / ||w + b A||^2: much only where a change all but takes away what it is added to.
    """
    flat = weight.flatten(1)
    if axis == 1:
        flat, left, right = flat.T, right.T, left.T
    length = lengths(weight, axis)
    absent = length < torch.finfo(length.dtype).tiny
    one = length.masked_fill(absent, 1)
    # For an input, one row of `left` for each place of the kernel.
    each = one.flatten().repeat_interleave(len(left) // one.numel())[:, None]
    unit = left / each
    cross = 2 * (flat @ right.T) / each + unit @ (right @ right.T)
    share = (cross * unit).sum(1).view(one.numel(), -1).sum(1).view(one.shape)
    square = share + 1 - absent.to(share.dtype)
    none = square <= 0
    # The root of 0 has no gradient.
    return (one * square.masked_fill(none, 1).sqrt()).masked_fill(none, 0)


def magnitude_axis(magnitude: Sequence[int], weight: Sequence[int]) -> int | None:
    """The axis of a weight that a DoRA magnitude is for: 0 for outputs, 1 for inputs, None for neither.

    Both arguments are shapes. (O,), (O, 1, ...) and (1, O, 1, ...) are for outputs, (1, I, 1, ...) is for
    inputs. Where both axes of the weight have the same size n, (n,) and (n, 1, ...) mean outputs and
    (1, n, ...) means inputs.
    """
    size = math.prod(magnitude)
    inputs_first = len(magnitude) > 1 and magnitude[0] == 1
    for axis in (1, 0) if inputs_first else (0, 1):
        if axis < len(weight) and weight[axis] == size:
            return axis
    return None
