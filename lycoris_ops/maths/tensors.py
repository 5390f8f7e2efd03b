"""Tensors: in which dtype they are computed with, what they hold, and products that several kinds need.

Axes: O output, I input, r rank, K the flattened input and kernel (I * prod(kernel)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

# torch ships no types for it.
_linalg = cast("Any", torch.linalg)

PIECE = 1 << 20
"""Elements that are looked at together where the whole would need a large copy."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a change of a weight of `dtype` is computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def narrowed(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 values in `dtype` where that holds every one of them, else in float32 (in float64 from it)."""
    own = exact.to(dtype)
    return own if torch.equal(own.double(), exact) else exact.to(torch.promote_types(dtype, torch.float32))


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


def padded(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight in a larger one of `shape`, zero beyond it."""
    larger = weight.new_zeros(shape)
    larger[tuple(slice(size) for size in weight.shape)] = weight
    return larger
