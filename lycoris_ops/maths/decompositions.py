"""Decompositions of matrices, and rotations made of them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

# torch ships no types for it.
_linalg = cast("Any", torch.linalg)


def singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, k), S (k,) descending and V^T (k, n) of a matrix, k the smaller side."""
    return tuple(_linalg.svd(matrix, full_matrices=False))


def cayley(skew: Tensor) -> Tensor:
    """(I + Q) (I - Q)^-1 of skew-symmetric matrices Q (..., b, b): a rotation each."""
    one = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return _linalg.solve(one - skew, one + skew, left=False)
