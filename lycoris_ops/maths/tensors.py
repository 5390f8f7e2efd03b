"""Tensors: dtypes to compute in, checks of values, and operations that several kinds of layers need.

Axes: O outputs, I inputs, r rank, K inputs and kernel flattened (I * prod(kernel)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

# torch ships no types for its `linalg` functions.
_linalg = cast("Any", torch.linalg)

PIECE = 1 << 20
"""Number of elements that `largest` takes at a time where it needs a wider copy of them."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a change of a weight of `dtype` is computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def narrowed(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 values in `dtype` if that holds all of them exactly, else in the wider of it and float32."""
    own = exact.to(dtype)
    return own if torch.equal(own.double(), exact) else exact.to(torch.promote_types(dtype, torch.float32))


def largest(tensor: Tensor) -> float:
    """The largest absolute value; NaN where there is one, 0 for no values.

    One pass without a copy: it costs about as much as a sum, a tenth of `isfinite().all()`.
    """
    flat = tensor.detach().reshape(-1)
    if not flat.numel():
        return 0.0
    # torch compares no float8.
    pieces = (piece.float() for piece in flat.split(PIECE)) if flat.itemsize == 1 else (flat,)
    found = [float(bound) for piece in pieces for bound in piece.aminmax()]
    # The comparisons of `max` with NaN depend on the order.
    return math.nan if any(math.isnan(bound) for bound in found) else max(map(abs, found))


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite."""
    return math.isfinite(largest(tensor))


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
