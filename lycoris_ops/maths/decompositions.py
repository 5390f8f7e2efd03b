"""Decompositions of matrices, and the Cayley transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .shapes import Shape
from .tensors import compute_dtype, energy, fetched, wide

# torch ships no types for its `linalg` functions.
_linalg = cast("Any", torch.linalg)

NoInverseError: type[RuntimeError] = _linalg.LinAlgError
"""Torch's error for a matrix that it cannot decompose or invert."""
EXACT = 128
"""A matrix with at most this many rows or columns is decomposed exactly by `leading_triples`."""
SMALL = 1 << 16
"""The most values of a matrix on another device that is decomposed on the CPU."""
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


Triples = tuple[Tensor, Tensor, Tensor]
"""U (m, k), S (k,) and V^T (k, n) of a matrix (m, n)."""


def no_pause() -> None:
    """The `Pause` that does nothing."""


class Span(NamedTuple):
    """The matrix left @ core @ right, where the columns of left and the rows of right are orthonormal.

    None stands for the identity.
    """

    left: Tensor | None
    core: Tensor
    right: Tensor | None


def triples_of(*spans: Span) -> list[Triples]:
    """The singular value decomposition of each matrix (m, n), with k = the smaller size of its core.

    Returns U (m, k), S (k,) in descending order and V^T (k, n). S is in float64 on the CPU, where looking at
    values waits for no device; the others are where `left` and `right` are, or the core. Cores with up to
    SMALL values are decomposed on the CPU: an accelerator would take longer.
    """
    cores = iter(fetched(*(span.core for span in spans if span.core.numel() <= SMALL)))
    triples: list[Triples] = []
    for left, inner, right in spans:
        core = next(cores) if inner.numel() <= SMALL else inner
        # Wide: where two singular values are close, a decomposition in float32 mixes their vectors, and how
        # much depends on the processor.
        turn, values, back = _linalg.svd(wide(core), full_matrices=False)
        turned = turn.to(inner) if left is None else left @ turn.to(left)
        other = back.to(inner) if right is None else back.to(right) @ right
        triples.append((turned, values, other))
    sizes = fetched(*(values for _, values, _ in triples))
    return [(left, size.double(), other) for (left, _, other), size in zip(triples, sizes, strict=True)]


def singular(matrix: Tensor) -> Triples:
    """`triples_of` one matrix, with S as the matrix is."""
    left, values, right = triples_of(Span(None, matrix, None))[0]
    return left, values.to(matrix), right


def qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Q (m, k) and R (k, n) of the decomposition Q R of a matrix (m, n), with k = min(m, n)."""
    return _linalg.qr(matrix)


def leading(matrix: Tensor) -> Tensor:
    """The Q of `qr`."""
    return qr(matrix)[0]


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues (n,), in ascending order, and the eigenvectors (n, n) of a symmetric matrix (n, n)."""
    return _linalg.eigh(matrix)


def span_of(matrix: Tensor) -> Span:
    """A long matrix as the product of its QR decomposition, which costs less than to decompose it at once."""
    rows, columns = matrix.shape
    if rows > columns:
        right, core, left = span_of(matrix.T)
        return Span(None if left is None else left.T, core.T, None if right is None else right.T)
    if columns < LONG * rows:
        return Span(None, matrix, None)
    basis, triangle = qr(matrix.T)
    return Span(None, triangle.T, basis.T)


def span_of_product(up: Tensor, down: Tensor) -> Span:
    """up @ down, (m, r) and (r, n), by QR decompositions of both: the product, much larger, is never formed.

    In float32 (float64 for float64).
    """
    dtype = compute_dtype(up.dtype)
    left, inner = qr(up.to(dtype))
    right, outer = qr(down.to(dtype).T)
    return Span(left, inner @ outer.T, right.T)


def cayley(skew: Tensor, times: float = 1.0) -> Tensor:
    """R - I of the rotations R = (I + Q) (I - Q)^-1, where Q = times * skew is skew-symmetric (..., b, b).

    This is 2 Q (I - Q)^-1: the Cayley transform without a difference that cancels where R is near I.

    Raises NoInverseError where there is no inverse in the dtype. On an accelerator, where the check would
    wait, the result is not finite instead.
    """
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    below, above = torch.sub(identity, skew, alpha=times), skew if times == 0.5 else 2 * times * skew
    if skew.device.type != "cpu":
        return _linalg.solve_ex(below, above, left=False)[0]
    return _linalg.solve(below, above, left=False)


def leading_span(
    matrix: Tensor,
    count: int,
    *,
    seed: int = 0,
    settled: float = 0.0,
    total: float | None = None,
    pause: Pause = no_pause,
) -> Span:
    """The span of the `count` leading singular triples of a matrix (m, n), in float32 (float64 for float64).

    A matrix whose smaller size is at most EXACT or 3 `count` is kept whole. For others POWERS power
    iterations refine a random basis, with a QR decomposition after each product; the same `seed` gives the
    same basis. The energy of the matrix A outside the basis Q is ||A||^2 - ||Q^T A||^2, which needs no
    further product. With `settled`, each iteration looks at it, which waits for the device, and the first one
    that lowers it by less than this share is the last. `total` is ||A||^2 where it is known.

    Source: Halko, Martinsson and Tropp, "Finding Structure with Randomness" (0909.4061), algorithms 4.4
    and 5.1.
    """
    rank = min(count, *matrix.shape)
    dtype = compute_dtype(matrix.dtype)
    matrix = matrix.to(dtype)
    if min(matrix.shape) <= max(EXACT, 3 * rank):
        return span_of(matrix)
    generator = torch.Generator().manual_seed(seed)
    width = min(rank + max(OVERSAMPLED, rank // 4), *matrix.shape)
    basis = torch.randn(matrix.shape[1], width, generator=generator, dtype=dtype).to(matrix.device)
    left, across = _projected(matrix, basis, pause)
    energies: list[Tensor] = []
    if settled:
        total_energy = energy(matrix) if total is None else torch.tensor(total, dtype=torch.float64)
        energies = [total_energy, energy(across)]
    for _ in range(POWERS):
        left, across = _projected(matrix, leading(across), pause)
        if energies:
            energies = fetched(*energies, energy(across))
            most, before, captured = map(float, energies)
            if captured - before <= settled * (most - captured):
                break
            del energies[1]
    pause()
    return span_of(across.T)._replace(left=left)


def leading_triples(
    matrix: Tensor, count: int, *, seed: int = 0, settled: float = 0.0, pause: Pause = no_pause
) -> Triples:
    """The `count` leading triples of a matrix (m, n), or all where it has fewer; see `leading_span`."""
    span = leading_span(matrix, count, seed=seed, settled=settled, pause=pause)
    ((left, values, right),) = triples_of(span)
    return left[:, :count], values[:count], right[:count]


def _projected(matrix: Tensor, basis: Tensor, pause: Pause) -> tuple[Tensor, Tensor]:
    """Q (m, k), an orthonormal basis of matrix @ basis, and matrix^T Q (n, k)."""
    pause()
    product = matrix @ basis
    pause()
    left = leading(product)
    pause()
    return left, matrix.T @ left


def kronecker_triples(w1: Tensor, w2: Tensor, count: int) -> Triples:
    """The `count` leading singular triples of kron(w1, w2), from the decompositions of both factors.

    Each singular value is the product of one of w1, (l, i), and one of w2, (k, j); its vectors are the
    Kronecker products of their vectors. Returns U (l * k, n), S (n,) in descending order and V^T (n, i * j).
    Source: Van Loan, "The Ubiquitous Kronecker Product" (2000), section 2.
    """
    (left1, values1, right1), (left2, values2, right2) = triples_of(span_of(w1), span_of(w2))
    products = torch.outer(values1, values2).flatten()
    order = products.argsort(descending=True)[:count]
    first, second = (order // len(values2)).to(w1.device), (order % len(values2)).to(w1.device)
    left = (left1.index_select(1, first)[:, None] * left2.index_select(1, second)[None]).flatten(0, 1)
    right = (right1.index_select(0, first)[:, :, None] * right2.index_select(0, second)[:, None]).flatten(1)
    return left, products[order], right


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


def nearest_kroneckers(
    values: Tensor,
    splits: Sequence[tuple[int, int]],
    *,
    seed: int = 0,
    settled: float = 0.0,
    pause: Pause = no_pause,
) -> list[tuple[Tensor, Tensor]]:
    """For each split (rows, columns) the w1 (rows, columns), of norm 1, and w2 (k, j, *kernel) for the
    kron(w1, w2) nearest to values (O, I, *kernel).

    The product keeps ||w2||^2 of the energy. See `rearranged`.
    """
    # On the CPU nothing is waited for: one split at a time. On a device the blocks are formed again after the
    # wait, because those of all splits would take much memory.
    groups = [[split] for split in splits] if values.device.type == "cpu" else [splits]
    nearest: list[tuple[Tensor, Tensor]] = []
    for group in groups:
        blocks, products = values, list[Tensor]()
        for split in group:
            blocks = rearranged(values, *split)
            pause()
            if len(blocks) <= EXACT:
                # Few and long blocks take much longer to decompose than their products take to form.
                products.append(blocks @ blocks.T)
        grams = iter(fetched(*products))
        for rows, columns in group:
            blocks = blocks if len(group) == 1 else rearranged(values, rows, columns)
            if len(blocks) <= EXACT:
                left = eigen(wide(next(grams)))[1][:, -1].to(blocks)
            else:
                triples = leading_triples(blocks, 1, seed=seed, settled=settled, pause=pause)
                left = triples[0][:, 0]
            inner = (values.shape[0] // rows, values.shape[1] // columns, *values.shape[2:])
            nearest.append((left.reshape(rows, columns), (left @ blocks).reshape(inner)))
    return nearest


def tucker(left: Tensor, values: Tensor, right: Tensor, shape: Shape) -> Triples:
    """up (O, r), core (r, r, *kernel) and down (r, I) of a convolution (O, I, *kernel).

    `left`, `values` and `right` are the leading r singular triples of its matrix (O, K). up and down are
    orthonormal bases of outputs and of inputs, ordered by importance. A lower rank takes their first vectors,
    and keeps the energy of the core's first rows and columns. The singular values are in the core. With fewer
    inputs than r, r becomes I.

    Source: De Lathauwer, De Moor and Vandewalle, "A Multilinear Singular Value Decomposition" (2000).
    """
    rank, inputs = min(len(values), shape[1]), shape[1]
    inner = (values.to(right)[:, None] * right).reshape(len(values), inputs, -1)
    ((basis, _, _),) = triples_of(span_of(inner.transpose(0, 1).reshape(inputs, -1)))
    basis = basis[:, :rank]
    core = torch.einsum("mik,in->mnk", inner, basis)[:rank]
    return left[:, :rank], core.reshape(rank, rank, *shape[2:]), basis.T


def balanced(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """U sqrt(S) and sqrt(S) V^T: two factors of equal norm, whose product is U S V^T."""
    root = values.to(left).sqrt()
    return left * root, root[:, None] * right
