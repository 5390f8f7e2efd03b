"""The tensor identities that more than one algorithm needs, each stated once.

Axes: O output, I input, r rank, K the flattened input and kernel (I * prod(kernel)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import LayerError

Shape = tuple[int, ...]

Extent = tuple[int | None, ...]
"""The shape that a layer is made for; None where it fits any size."""

# torch ships no types for it.
_linalg = cast("Any", torch.linalg)

PIECE = 1 << 20
"""Elements that are looked at together where the whole would need a large copy."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a change of a weight of `dtype` is computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite.

    One summing pass costs a tenth of `isfinite().all()`; only a suspicious sum is looked at closely.
    It goes by pieces: the sum of a narrow dtype makes a wide copy of what it sums.
    """
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE]
        wide = piece.float() if piece.itemsize == 1 else piece
        total = wide.sum(dtype=compute_dtype(wide.dtype))
        if not torch.isfinite(total) and not torch.isfinite(wide).all():
            return False
    return True


def fold_core(core: Tensor, factor: Tensor) -> Tensor:
    """Fold a Tucker core into its input factor: out[m, j, ...] = sum_n core[m, n, ...] * factor[n, j].

    `core` is (r, r, *kernel), `factor` is (r, I); the result (r, I, *kernel) is an ordinary
    convolution factor, so that Tucker layers need no path of their own.
    Source: Yeh et al., "Navigating Text-To-Image Customization" (LyCORIS), appendix on Tucker.
    """
    dtype = torch.promote_types(torch.float32, torch.promote_types(core.dtype, factor.dtype))
    flat = factor.reshape(factor.shape[0], -1)
    return torch.einsum("mn...,nj->mj...", core.to(dtype), flat.to(dtype))


def norm(tensor: Tensor, *dims: int) -> Tensor:
    """The Euclidean norm over some dimensions, which are kept, or of all values."""
    return _linalg.vector_norm(tensor, dim=dims or None, keepdim=bool(dims))


def singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, k), S (k,) descending and V^T (k, n) of a matrix, k the smaller side."""
    return tuple(_linalg.svd(matrix, full_matrices=False))


def cayley(skew: Tensor) -> Tensor:
    """(I + Q) (I - Q)^-1 of skew-symmetric matrices Q (..., b, b): a rotation each."""
    one = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return _linalg.solve(one - skew, one + skew, left=False)


def factorization(dimension: int, factor: int = -1) -> tuple[int, int]:
    """Split `dimension` into (m, n) with m * n == dimension and m <= n.

    With `factor` > 0 dividing the dimension, that split; otherwise the most balanced split whose
    smaller part is at most `factor` (no bound for -1). 128, -1 gives (8, 16); 128, 4 gives (4, 32);
    127 gives (1, 127). Source: the LoKr layout of LyCORIS.
    """
    if dimension < 1 or factor == 0 or factor < -1:
        raise ValueError(f"cannot factor {dimension} by {factor}: both must be positive (or factor -1)")
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    bound = math.isqrt(dimension) if factor < 0 else min(factor, math.isqrt(dimension))
    small = next(m for m in range(bound, 0, -1) if dimension % m == 0)
    return small, dimension // small


def flat_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A weight's shape as the matrix (O, K) that the patch ops work on."""
    return shape[0], math.prod(shape[1:])


def padded(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight in a larger one of `shape`, zero beyond it."""
    larger = weight.new_zeros(shape)
    larger[tuple(slice(size) for size in weight.shape)] = weight
    return larger


def fits(stored: Extent, weight: Sequence[int]) -> bool:
    """Whether a change of extent `stored` can be added to a weight of shape `weight`.

    The matrices (O, K) must agree, and so must the kernels where both sides have one: a 1x1
    convolution and a linear layer hold the same matrix, a 3x3 kernel and a 9-tap one do not.
    Sizes that are None fit any; (O, None) and (None, K) are matrices, with more sizes open the kernel is.
    What changes no weight, (), fits every one.
    """
    if not stored:
        return True
    sizes = [size for size in stored if size is not None]
    if len(sizes) < len(stored):
        met = flat_shape(weight) if len(stored) == 2 else weight[:2]
        return len(met) == 2 and all(size in (None, found) for size, found in zip(stored, met, strict=False))
    if not weight or flat_shape(sizes) != flat_shape(weight):
        return False
    if len(stored) <= 2 or len(weight) <= 2:
        return len(weight) == 1 or len(stored) > 1 or math.prod(weight[1:]) == 1
    return _kernel(stored) == _kernel(weight)


def _kernel(shape: Sequence[int | None]) -> Shape:
    """The kernel without trailing ones: PEFT writes that of a one-dimensional Tucker core as (k, 1)."""
    kernel = [size for size in shape[2:] if size is not None]
    while kernel and kernel[-1] == 1:
        kernel.pop()
    return tuple(kernel)


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
