"""DoRA: a magnitude of its own for each output or input of a weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import LayerError
from .tensors import norm


def dora_factor(magnitude: Tensor, norm_of: Tensor) -> Tensor:
    """magnitude / norm, to be multiplied with a direction: the norm of each output or input of `norm_of`.

    The axis is that of `magnitude`: (O,), (O, 1, ...) or (1, O, 1, ...) for outputs, the norm being
    over all other dimensions; (1, I, 1, ...) for inputs, over outputs and kernel. Where both axes are
    of one size, (n,) and (n, 1, ...) mean outputs, (1, n, ...) means inputs. What has no direction, an
    output or input of zeros, keeps none: its factor is 0.
    Source: Liu et al., "DoRA" (2402.09353), eq. 5; the input axis by LyCORIS before 3.2.
    """
    axis = magnitude_axis(magnitude.shape, norm_of.shape)
    shape = [1] * norm_of.ndim
    shape[axis] = -1
    length = norm(norm_of.transpose(0, axis).flatten(1), 1).reshape(shape)
    factor = magnitude.to(norm_of.device, norm_of.dtype).reshape(shape) / length
    return factor.masked_fill(length < torch.finfo(length.dtype).tiny, 0)


def magnitude_axis(magnitude: Sequence[int], weight: Sequence[int]) -> int:
    """0 where a DoRA magnitude is for a weight's outputs, 1 for its inputs, as in `dora_factor`.

    Raises LayerError where it is for neither.
    """
    size = math.prod(magnitude)
    inputs_first = len(magnitude) > 1 and magnitude[0] == 1
    for axis in (1, 0) if inputs_first else (0, 1):
        if axis < len(weight) and weight[axis] == size:
            return axis
    raise LayerError(
        "a DoRA magnitude fits neither the outputs nor the inputs of its weight",
        got=str(list(magnitude)),
        expected=f"{weight[0]} values" + (f" or {weight[1]}" if len(weight) > 1 else ""),
    )
