"""The tensor identities that more than one algorithm needs, each stated once.

Axes: O output, I input, r rank, K the flattened input and kernel (I * prod(kernel)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Shape = tuple[int, ...]

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


def fits(stored: Sequence[int], weight: Sequence[int]) -> bool:
    """Whether a change of shape `stored` can be added to a weight of shape `weight`.

    The matrices (O, K) must agree, and so must the kernels where both sides have one: a 1x1
    convolution and a linear layer hold the same matrix, a 3x3 kernel and a 9-tap one do not.
    """
    if len(weight) < 2 or flat_shape(stored) != flat_shape(weight):
        return False
    if len(stored) == 2 or len(weight) == 2:
        return True
    return tuple(stored) == tuple(weight)
