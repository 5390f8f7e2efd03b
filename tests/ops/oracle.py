"""What a foreign implementation of an adapter computes, read off its forward pass.

A layer is an affine map, so its weight is what unit inputs give beyond the zero input. Nothing of the
foreign merge code is used: merging is where the known faults of those packages are.
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
"""One weight of each kind of layer, large enough for both Kronecker factors to be low-rank."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def layer(
    shape: tuple[int, ...], *, bias: bool = False, dtype: torch.dtype = torch.float64, **options: Any
) -> nn.Module:
    """A layer with a random weight of this shape, which is (O, I / groups, *kernel)."""
    out, inputs, *kernel = shape
    if not kernel:
        made: nn.Module = nn.Linear(inputs, out, bias=bias, dtype=dtype)
    else:
        convolution = CONVOLUTIONS[len(kernel) - 1]
        inputs *= options.get("groups", 1)
        made = convolution(inputs, out, tuple(kernel), bias=bias, dtype=dtype, **options)
    return made.requires_grad_(False)


def affine(
    forward: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """(weight, bias) of a layer whose weight has this shape; the input is as large as the kernel."""
    units = torch.eye(math.prod(shape[1:]), dtype=dtype).reshape(-1, *shape[1:])
    with torch.no_grad():
        bias = forward(torch.zeros_like(units[:1])).double().reshape(shape[0])
        weight = forward(units).double().reshape(len(units), shape[0]) - bias
    return weight.T.reshape(shape), bias


@torch.no_grad()
def fill(parameters: Iterable[Tensor], file: torch.dtype) -> None:
    """Random values that the file's dtype holds exactly, so that saving them loses nothing."""
    for parameter in parameters:
        nn.init.normal_(parameter, std=0.5)
        parameter.copy_(parameter.to(file))


def stored(tensors: Mapping[str, Tensor], file: torch.dtype) -> dict[str, Tensor]:
    """Tensors as a file of this dtype holds them: all of them, alpha and flags included."""
    return {name: tensor.detach().to(file).clone() for name, tensor in tensors.items()}


def error(found: Tensor, wanted: Tensor, base: Tensor) -> float:
    """The largest difference of two changes of a weight, relative to the largest changed weight."""
    assert found.shape == wanted.shape
    size = (wanted + base).abs().max()
    # A change that is small beside the base would hide in the rounding of the base.
    assert wanted.abs().max() > 0.05 * size
    return float((found.double() - wanted).abs().max() / size)
