"""DoRA: a magnitude of its own for each output or input of a weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .tensors import norm


def dora_factor(magnitude: Tensor, norm_of: Tensor, axis: int) -> Tensor:
    """magnitude / norm, to be multiplied with a direction: the norm of each output or input of `norm_of`.

    `axis` is that of the magnitude, see `magnitude_axis`: the norm of an output (axis 0) is over all other
    dimensions, that of an input (axis 1) over outputs and kernel. What has no direction, an output or input
    of zeros, keeps none: its factor is 0.
    Source: Liu et al., "DoRA" (2402.09353), eq. 5; the input axis by LyCORIS before 3.2.
    """
    shape = [1] * norm_of.ndim
    shape[axis] = -1
    length = norm(norm_of.transpose(0, axis).flatten(1), 1).reshape(shape)
    factor = magnitude.to(norm_of.device, norm_of.dtype).reshape(shape) / length
    return factor.masked_fill(length < torch.finfo(length.dtype).tiny, 0)


def magnitude_axis(magnitude: Sequence[int], weight: Sequence[int]) -> int | None:
    """0 where a DoRA magnitude of that shape is for a weight's outputs, 1 for its inputs, None for neither.

    (O,), (O, 1, ...) and (1, O, 1, ...) are for outputs, (1, I, 1, ...) is for inputs. Where both axes are
    of one size, (n,) and (n, 1, ...) mean outputs, (1, n, ...) means inputs.
    """
    size = math.prod(magnitude)
    inputs_first = len(magnitude) > 1 and magnitude[0] == 1
    for axis in (1, 0) if inputs_first else (0, 1):
        if axis < len(weight) and weight[axis] == size:
            return axis
    return None
