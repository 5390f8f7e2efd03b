"""DoRA: each output or each input of a weight has a magnitude of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .tensors import norm


def dora_factor(magnitude: Tensor, norm_of: Tensor, axis: int) -> Tensor:
    """magnitude / norm, the factor by which DoRA multiplies each output or input of a direction.

    The norm is that of each output or input of `norm_of` (O, I, *kernel). `axis` is the one that
    `magnitude_axis` returns: the norm of an output (axis 0) is taken over all other dimensions, the norm of
    an input (axis 1) over outputs and kernel. The result broadcasts against `norm_of`. An output or input of
    zeros has no direction: its factor is 0.
    Source: Liu et al., "DoRA" (2402.09353), eq. 5; the input axis by LyCORIS before 3.2.
    """
    length = lengths(norm_of, axis)
    factor = magnitude.to(norm_of.device, norm_of.dtype).reshape(length.shape) / length
    # `tiny` is the smallest normal number: a division by less can overflow.
    return factor.masked_fill(length < torch.finfo(length.dtype).tiny, 0)


def lengths(weight: Tensor, axis: int) -> Tensor:
    """The norm of each output (axis 0) or input (axis 1) of a weight, as (O, 1, ...) or (1, I, 1, ...)."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    return norm(weight.transpose(0, axis).flatten(1), 1).reshape(shape)


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
