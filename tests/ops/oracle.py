"""What a foreign implementation of an adapter computes, read off its forward pass.

A layer is an affine map. Its bias is the output for a zero input, and its weight is what unit inputs give
beyond the bias. The merge code of the foreign package is not used, because merging is where the known
faults of those packages are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

EPS32, EPS64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))

SHAPES: dict[str, tuple[int, ...]] = {
    "linear": (36, 40),
    "linear-square": (36, 36),
    "conv1d": (36, 40, 3),
    "conv2d": (36, 20, 3, 3),
    "conv2d-1x1": (36, 40, 1, 1),
    "conv2d-square": (36, 36, 2, 2),
    "conv2d-wide": (36, 10, 1, 5),
    "conv3d": (36, 10, 3, 1, 2),
}
"""The shape (O, I, *kernel) of one weight of each kind of layer, large enough that both Kronecker factors
of a LoKr can be low-rank."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def layer(
    shape: tuple[int, ...], *, bias: bool = False, dtype: torch.dtype = torch.float64, **options: Any
) -> nn.Module:
    """A frozen layer with a random weight of this shape, which is (O, I / groups, *kernel)."""
    out, inputs, *kernel = shape
    if not kernel:
        made: nn.Module = nn.Linear(inputs, out, bias=bias, dtype=dtype)
    else:
        convolution = CONVOLUTIONS[len(kernel) - 1]
        # torch's modules ask for the inputs of all groups together.
        inputs *= options.get("groups", 1)
        made = convolution(inputs, out, tuple(kernel), bias=bias, dtype=dtype, **options)
    return made.requires_grad_(False)


def affine(
    forward: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """The weight and the bias, in float64, of a layer whose weight has this shape.

    The inputs are as large as the kernel, so that a convolution has one output position. `dtype` is theirs.
    """
    units = torch.eye(math.prod(shape[1:]), dtype=dtype).reshape(-1, *shape[1:])
    with torch.no_grad():
        bias = forward(torch.zeros_like(units[:1])).double().reshape(shape[0])
        weight = forward(units).double().reshape(len(units), shape[0]) - bias
    return weight.T.reshape(shape), bias


@torch.no_grad()
def fill(parameters: Iterable[Tensor], file: torch.dtype) -> None:
    """Fill parameters with random values that the file's dtype holds exactly, so that none is rounded."""
    for parameter in parameters:
        nn.init.normal_(parameter, std=0.5)
        parameter.copy_(parameter.to(file))


def stored(tensors: Mapping[str, Tensor], file: torch.dtype) -> dict[str, Tensor]:
    """Copies of the tensors in the dtype of a file: all of them, alpha and flags included."""
    return {name: tensor.detach().to(file).clone() for name, tensor in tensors.items()}


def error(found: Tensor, wanted: Tensor, base: Tensor) -> float:
    """The largest difference between two changes of `base`, relative to the largest value of base + wanted.

    All three have the same shape.
    """
    assert found.shape == wanted.shape
    size = (wanted + base).abs().max()
    # A change that is small beside the base would hide in the rounding of the base.
    assert wanted.abs().max() > 0.05 * size
    return float((found.double() - wanted).abs().max() / size)
