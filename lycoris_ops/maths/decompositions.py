"""Decompositions of matrices, and rotations made of them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from .tensors import compute_dtype

# torch ships no types for its `linalg` functions.
_linalg = cast("Any", torch.linalg)

NoInverseError: type[RuntimeError] = _linalg.LinAlgError
"""What torch raises for a matrix that it cannot decompose or invert."""
EXACT = 128
"""A matrix with at most this many rows or columns is decomposed exactly by `leading_triples`."""
LONG = 3
"""The ratio of the sizes of a matrix from which a QR decomposition is made first."""
OVERSAMPLED = 10
"""The least number of vectors that a random basis has beyond those that are asked for."""
POWERS = 4
"""Power iterations of a random basis. Each makes small singular values smaller, relatively, by a square."""


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


def pseudo_inverse(matrix: Tensor) -> Tensor:
    """The pseudo-inverse (n, m) of a matrix (m, n)."""
    return _linalg.pinv(matrix)


def cayley(skew: Tensor) -> Tensor:
    """The Cayley transform (I + Q) (I - Q)^-1 of each skew-symmetric matrix Q (..., b, b): a rotation."""
    one = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return _linalg.solve(one - skew, one + skew, left=False)


def leading_triples(matrix: Tensor, count: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` leading singular triples of a matrix (m, n), or all where it has fewer.

    Returns U (m, k), S (k,) in descending order and V^T (k, n), in float32 (float64 for float64), with
    k = min(count, m, n). Small matrices, and those of which more than a third is asked for, are decomposed
    exactly. For others a random basis is refined by POWERS power iterations, with a QR decomposition after
    each product: `seed` gives the same basis again.

    Source: Halko, Martinsson and Tropp, "Finding Structure with Randomness" (0909.4061), algorithms 4.4
    and 5.1.
    """
    found = min(count, *matrix.shape)
    dtype = compute_dtype(matrix.dtype)
    matrix = matrix.to(dtype)
    if min(matrix.shape) <= max(EXACT, 3 * found):
        left, values, right = _of_long(matrix)
        return left[:, :found], values[:found], right[:found]
    generator = torch.Generator().manual_seed(seed)
    width = min(found + max(OVERSAMPLED, found // 4), *matrix.shape)
    basis = torch.randn(matrix.shape[1], width, generator=generator, dtype=dtype).to(matrix.device)
    for _ in range(POWERS):
        basis = leading(matrix.T @ leading(matrix @ basis))
    basis = leading(matrix @ basis)
    left, values, right = _of_long(basis.T @ matrix)
    return (basis @ left)[:, :found], values[:found], right[:found]


def _of_long(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `singular`, with a QR decomposition first, which costs less for long matrices."""
    rows, columns = matrix.shape
    if rows > columns:
        right, values, left = _of_long(matrix.T)
        return left.T, values, right.T
    if columns < LONG * rows:
        return singular(matrix)
    basis, triangle = _linalg.qr(matrix.T)
    left, values, right = singular(triangle.T)
    return left, values, right @ basis.T


def rearranged(values: Tensor, rows: int, columns: int) -> Tensor:
    """R (l * i, k * j * prod(kernel)) of a tensor (O, I, *kernel), with O = l * k and I = i * j.

    l is `rows` and i is `columns`. Each row of R holds one block (k, j, *kernel), so that the tensor is
    kron(w1, w2) exactly where R is the outer product of w1 and w2: the nearest Kronecker product is the
    leading singular triple of R. Source: Van Loan and Pitsianis, "Approximation with Kronecker Products"
    (1993), section 2.
    """
    outputs, inputs, *kernel = values.shape
    blocks = values.reshape(rows, outputs // rows, columns, inputs // columns, *kernel)
    return blocks.transpose(1, 2).reshape(rows * columns, -1)
