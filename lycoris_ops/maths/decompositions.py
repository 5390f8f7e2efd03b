"""Decompositions of matrices, and rotations made of them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

# torch ships no types for its `linalg` functions.
_linalg = cast("Any", torch.linalg)

NoInverseError: type[RuntimeError] = _linalg.LinAlgError
"""What torch raises for a matrix that it cannot decompose or invert."""


def singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of a matrix (m, n), with k = min(m, n).

    Returns U (m, k), S (k,) in descending order and V^T (k, n), in the dtype of the matrix.
    """
    # In float64: where two singular values are close, a decomposition in float32 mixes their vectors, and
    # how much depends on the processor.
    return tuple(part.to(matrix.dtype) for part in _linalg.svd(matrix.double(), full_matrices=False))


def leading(matrix: Tensor) -> Tensor:
    """Q (m, k) of the decomposition Q R of a matrix (m, n), with k = min(m, n)."""
    return _linalg.qr(matrix)[0]


def cayley(skew: Tensor) -> Tensor:
    """The Cayley transform (I + Q) (I - Q)^-1 of each skew-symmetric matrix Q (..., b, b): a rotation."""
    one = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return _linalg.solve(one - skew, one + skew, left=False)
