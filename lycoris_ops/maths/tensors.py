"""Tensors: dtypes to compute in, checks of values, and operations that several kinds of layers need.

Axes: O outputs, I inputs, r rank, K inputs and kernel flattened (I * prod(kernel)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

# torch ships no types for its `linalg` functions.
_linalg = cast("Any", torch.linalg)

PIECE = 1 << 20
"""Number of elements that `is_finite` checks at a time: a check of all at once would need a large copy."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a change of a weight of `dtype` is computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def narrowed(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 values in `dtype` if that holds all of them exactly, else in the wider of it and float32."""
    own = exact.to(dtype)
    return own if torch.equal(own.double(), exact) else exact.to(torch.promote_types(dtype, torch.float32))


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite.

    A sum costs a tenth of `isfinite().all()`, and is not finite if one of its values is not. Only where a
    sum is not finite are the values themselves checked, since finite ones may overflow. The tensor is summed
    in pieces, because torch makes a wide copy of narrow values that it sums.
    """
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE]
        # torch sums no float8.
        wide = piece.float() if piece.itemsize == 1 else piece
        total = wide.sum(dtype=compute_dtype(wide.dtype))
        if not torch.isfinite(total) and not torch.isfinite(wide).all():
            return False
    return True


def fold_core(core: Tensor, factor: Tensor) -> Tensor:
    """Fold a Tucker core into its input factor: out[m, j, ...] = sum_n core[m, n, ...] * factor[n, j].

    `core` is (r, r, *kernel), `factor` is (r, I). The result (r, I, *kernel), in float32 or wider, is an
    ordinary convolution factor, so that Tucker layers need no path of their own.
    Source: Yeh et al., "Navigating Text-To-Image Customization" (LyCORIS), appendix on Tucker.
    """
    dtype = torch.promote_types(torch.float32, torch.promote_types(core.dtype, factor.dtype))
    flat = factor.reshape(factor.shape[0], -1)
    return torch.einsum("mn...,nj->mj...", core.to(dtype), flat.to(dtype))


def norm(tensor: Tensor, *dims: int) -> Tensor:
    """The Euclidean norm over `dims`, which stay as dimensions of size 1; without `dims`, of all values."""
    return _linalg.vector_norm(tensor, dim=dims or None, keepdim=bool(dims))


def padded(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of `shape` that holds the weight in its first rows, columns and so on, and zeros elsewhere."""
    larger = weight.new_zeros(shape)
    larger[tuple(slice(size) for size in weight.shape)] = weight
    return larger
