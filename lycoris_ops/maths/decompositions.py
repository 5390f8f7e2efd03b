"""Decompositions of matrices, and the Cayley transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from .shapes import Shape
from .tensors import compute_dtype, energy_of, wide

# torch ships no types for its `linalg` functions.
_linalg = cast("Any", torch.linalg)

NoInverseError: type[RuntimeError] = _linalg.LinAlgError
"""Torch's error for a matrix that it cannot decompose or invert."""
EXACT = 128
"""A matrix with at most this many rows or columns is decomposed exactly by `leading_triples`."""
SMALL = 1 << 16
"""The most values of a matrix on another device that `singular` decomposes on the CPU."""
LONG = 3
"""A matrix at least this many times as long as wide gets a QR decomposition first."""
OVERSAMPLED = 10
"""A random basis has at least this many more vectors than are asked for."""
POWERS = 4
"""Power iterations of a random basis. Each damps small singular values by the square of their ratio to large
ones."""
SETTLED = 1e-3
"""Stop once a power iteration lowers the energy outside the random basis by less than this share."""

Pause = Callable[[], None]
"""Called now and then in long computations. An exception that it raises ends them."""


def no_pause() -> None:
    """The `Pause` that does nothing."""


def singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of a matrix (m, n), with k = min(m, n).

    Returns U (m, k), S (k,) in descending order and V^T (k, n), in the dtype of the matrix. Matrices of up to
    SMALL values go to the CPU for it: an accelerator takes longer, and some have no float64.
    """
    if matrix.device.type != "cpu" and matrix.numel() <= SMALL:
        left, values, right = (part.to(matrix.device) for part in singular(matrix.cpu()))
        return left, values, right
    # In float64: where two singular values are close, a decomposition in float32 mixes their vectors, and
    # how much depends on the processor.
    return tuple(part.to(matrix) for part in _linalg.svd(wide(matrix), full_matrices=False))


def leading(matrix: Tensor) -> Tensor:
    """Q (m, k) of the decomposition Q R of a matrix (m, n), with k = min(m, n)."""
    return _linalg.qr(matrix)[0]


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues (n,), in ascending order, and the eigenvectors (n, n) of a symmetric matrix (n, n)."""
    return _linalg.eigh(matrix)


def cayley(skew: Tensor, times: float = 1.0) -> Tensor:
    """R - I of the rotations R = (I + Q) (I - Q)^-1, where Q = times * skew is skew-symmetric (..., b, b).

    This is 2 Q (I - Q)^-1: the Cayley transform without a difference that cancels where R is near I.

    Raises NoInverseError where there is no inverse in the dtype. On an accelerator, where the check would
    wait, the result is not finite instead.
    """
    one = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    below, above = torch.sub(one, skew, alpha=times), skew if times == 0.5 else 2 * times * skew
    if skew.device.type != "cpu":
        return _linalg.solve_ex(below, above, left=False)[0]
    return _linalg.solve(below, above, left=False)


def leading_triples(
    matrix: Tensor, count: int, *, seed: int = 0, settled: float = 0.0, pause: Pause = no_pause
) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` leading singular triples of a matrix (m, n), or all where it has fewer.

    Returns U (m, k), S (k,) in descending order and V^T (k, n), in float32 (float64 for float64), with k =
    min(count, m, n). A matrix whose smaller size is at most EXACT or 3 k is decomposed exactly. For others
    POWERS power iterations refine a random basis, with a QR decomposition after each product; the same `seed`
    gives the same basis. The energy of the matrix A outside the basis Q is ||A||^2 - ||Q^T A||^2, which needs
    no further product. The iterations end early when one lowers this energy by less than the share `settled`.

    Source: Halko, Martinsson and Tropp, "Finding Structure with Randomness" (0909.4061), algorithms 4.4
    and 5.1.
    """
    found = min(count, *matrix.shape)
    dtype = compute_dtype(matrix.dtype)
    matrix = matrix.to(dtype)
    if min(matrix.shape) <= max(EXACT, 3 * found):
        left, values, right = of_long(matrix)
        return left[:, :found], values[:found], right[:found]
    generator = torch.Generator().manual_seed(seed)
    width = min(found + max(OVERSAMPLED, found // 4), *matrix.shape)
    basis = torch.randn(matrix.shape[1], width, generator=generator, dtype=dtype).to(matrix.device)
    total = energy_of(matrix) if settled else 0.0
    left, across = _projected(matrix, basis, pause)
    captured = energy_of(across) if settled else 0.0
    for _ in range(POWERS):
        left, across = _projected(matrix, leading(across), pause)
        before, captured = captured, energy_of(across) if settled else 0.0
        if settled and captured - before <= settled * (total - captured):
            break
    pause()
    turn, values, right = of_long(across.T)
    return (left @ turn)[:, :found], values[:found], right[:found]


def _projected(matrix: Tensor, basis: Tensor, pause: Pause) -> tuple[Tensor, Tensor]:
    """Q (m, k), an orthonormal basis of matrix @ basis, and matrix^T Q (n, k)."""
    pause()
    product = matrix @ basis
    pause()
    left = leading(product)
    pause()
    return left, matrix.T @ left


def product_triples(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of up @ down, (m, r) and (r, n), from QR decompositions of both.

    The product itself, which is much larger, is never formed. Returns U (m, k), S (k,) in descending order
    and V^T (k, n) with k = min(m, r, n), in float32 (float64 for float64).
    """
    dtype = compute_dtype(up.dtype)
    left, inner = _linalg.qr(up.to(dtype))
    right, outer = _linalg.qr(down.to(dtype).T)
    turn, values, back = singular(inner @ outer.T)
    return left @ turn, values, back @ right.T


def kronecker_triples(w1: Tensor, w2: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` leading singular triples of kron(w1, w2), from the decompositions of both factors.

    Each singular value is the product of one of w1, (l, i), and one of w2, (k, j); its vectors are the
    Kronecker products of their vectors. Returns U (l * k, n), S (n,) in descending order and V^T (n, i * j).
    Source: Van Loan, "The Ubiquitous Kronecker Product" (2000), section 2.
    """
    (left1, values1, right1), (left2, values2, right2) = singular(w1), singular(w2)
    products = torch.outer(values1, values2).flatten()
    order = products.argsort(descending=True)[:count]
    one, two = order // len(values2), order % len(values2)
    left = (left1[:, None, one] * left2[None, :, two]).flatten(0, 1)
    right = (right1[one, :, None] * right2[two, None, :]).flatten(1)
    return left, products[order], right


def of_long(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `singular`, with a QR decomposition first, which costs less for long matrices."""
    rows, columns = matrix.shape
    if rows > columns:
        right, values, left = of_long(matrix.T)
        return left.T, values, right.T
    if columns < LONG * rows:
        return singular(matrix)
    basis, triangle = _linalg.qr(matrix.T)
    left, values, right = singular(triangle.T)
    return left, values, right @ basis.T


def rearranged(values: Tensor, rows: int, columns: int) -> Tensor:
    """R (l * i, k * j * prod(kernel)) of a tensor (O, I, *kernel), with O = l * k and I = i * j.

    l is `rows` and i is `columns`. Each row of R holds one block (k, j, *kernel), so that the tensor is
    kron(w1, w2) exactly when R is the outer product of w1 and w2: the nearest Kronecker product is the
    leading singular triple of R. Source: Van Loan and Pitsianis, "Approximation with Kronecker Products"
    (1993), section 2.
    """
    outputs, inputs, *kernel = values.shape
    blocks = values.reshape(rows, outputs // rows, columns, inputs // columns, *kernel)
    return blocks.transpose(1, 2).reshape(rows * columns, -1)


def nearest_kronecker(
    values: Tensor, rows: int, columns: int, *, seed: int = 0, settled: float = 0.0, pause: Pause = no_pause
) -> tuple[Tensor, Tensor]:
    """w1 (rows, columns), of norm 1, and w2 (k, j, *kernel) for the kron(w1, w2) nearest to values (O, I,
    *kernel).

    The product keeps ||w2||^2 of the energy. See `rearranged`.
    """
    blocks = rearranged(values, rows, columns)
    pause()
    if len(blocks) <= EXACT:
        # The blocks are few and long: to decompose them takes much longer than to form their products.
        left = eigen(wide(blocks @ blocks.T))[1][:, -1].to(blocks)
    else:
        left = leading_triples(blocks, 1, seed=seed, settled=settled, pause=pause)[0][:, 0]
    inner = (values.shape[0] // rows, values.shape[1] // columns, *values.shape[2:])
    return left.reshape(rows, columns), (left @ blocks).reshape(inner)


def tucker(left: Tensor, values: Tensor, right: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """up (O, r), core (r, r, *kernel) and down (r, I) of a convolution (O, I, *kernel).

    `left`, `values` and `right` are the leading r singular triples of its matrix (O, K). up and down are
    orthonormal bases of outputs and of inputs, ordered by importance. A lower rank takes their first vectors,
    and keeps the energy of the core's first rows and columns. The singular values are in the core. With fewer
    inputs than r, r becomes I.

    Source: De Lathauwer, De Moor and Vandewalle, "A Multilinear Singular Value Decomposition" (2000).
    """
    rank, inputs = min(len(values), shape[1]), shape[1]
    inner = (values[:, None] * right).reshape(len(values), inputs, -1)
    basis = of_long(inner.transpose(0, 1).reshape(inputs, -1))[0][:, :rank]
    core = torch.einsum("mik,in->mnk", inner, basis)[:rank]
    return left[:, :rank], core.reshape(rank, rank, *shape[2:]), basis.T


def balanced(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """U sqrt(S) and sqrt(S) V^T: two factors of equal norm, whose product is U S V^T."""
    root = values.sqrt()
    return left * root, root[:, None] * right
