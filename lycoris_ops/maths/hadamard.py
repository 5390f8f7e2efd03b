"""The Hadamard product of two low-rank matrices that is nearest to a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from .decompositions import Pause, balanced, leading, leading_triples, no_pause, singular
from .tensors import energy_of

# torch ships no types for its `linalg` functions.
_linalg = cast("Any", torch.linalg)

SWEEPS = 60
"""The most sweeps of a start."""
STILL = 1e-4
"""They end where one lowers the error by less than this share."""
EXACT = 1e-14
"""They end where the error is this share of the energy."""
RIDGE = 1e-10
"""What is added to the diagonal of the equations, as a share of its mean."""
STARTS = (8, 64)
"""The least and the most starts from `_rank_one`: small matrices, where more of them fail, have more."""
LOOKED_AT = 1 << 22
"""The values of the matrix in all of these starts together, between the two."""
TURNS = 100
"""The turns of each of these."""
UNLIKE = 0.12
"""Those go no further whose rows leave out more than this share of their energy as matrices of rank one."""
TRIAL = 8
"""The sweeps of the others before they are compared with the best one so far."""
WIDE = 1 / 6
"""They are made where r^2 is up to this share of the rows and columns: with fewer, they find nothing."""
MOST = 128
"""They are made where r^2 is up to this: for more, they take longer than the sweeps."""
LEFT_OUT = 0.02
"""They are made where the leading r^2 singular triples leave out less than this share, as rounding does."""
FOUND = 1e-3
"""No other start is needed where the error is this share of the energy above the least possible one."""
PIECE = 1 << 18
"""How many values of the matrix are taken to float64 at a time: what stays in a processor's cache."""

Pair = tuple[Tensor, Tensor]
"""The factors (m, r) and (r, n) of one of the two matrices."""


@dataclass(frozen=True)
class _Product:
    """Two matrices by their factors, with ||X - their product||^2."""

    pairs: tuple[Pair, Pair]
    error: float


def hadamard_pairs(
    matrix: Tensor,
    rank: int,
    *,
    given: tuple[Pair, Pair] | None = None,
    seed: int = 0,
    pause: Pause = no_pause,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w1_a, w1_b, w2_a, w2_b with (w1_a @ w1_b) * (w2_a @ w2_b) near a matrix X (m, n).

    w?_a (m, r), w?_b (r, n), in the dtype of the matrix. By alternating least squares in float64: each factor
    in turn is the best one for the three others, which are small equations for each row or column. That ends
    at a local minimum, so that the start matters. It is the two matrices that are `given`, of any scale.
    Without these the best is taken of several:

    - the leading singular triples of sqrt(|X|) and of sign(X) sqrt(|X|), whose product is X;
    - `_rank_one`, with one random basis after another.

    The first finds large matrices again that are such a product, and the second small ones. No product is
    nearer than the leading r^2 singular triples of X: what comes close to their error ends the search, and
    where they leave out more than rounding does there is no search.
    """
    total = energy_of(matrix)
    best = _swept(matrix, given or _split(matrix, rank, seed, pause), SWEEPS, total, pause)
    if given is None and rank**2 <= min(MOST, WIDE * min(matrix.shape)) and best.error > FOUND * total:
        triples = leading_triples(matrix, rank**2, seed=seed, pause=pause)
        least = total - energy_of(triples[1])
        trial = best
        for start in _rank_one(*triples, rank, seed, pause) if least < LEFT_OUT * total else ():
            if trial.error <= least + FOUND * total:
                break
            trial = min(trial, _swept(matrix, start, TRIAL, total, pause), key=lambda one: one.error)
        if trial is not best:
            best = _swept(matrix, trial.pairs, SWEEPS, total, pause)
    one, two, three, four = (factor.to(matrix.dtype) for pair in best.pairs for factor in pair)
    return one, two, three, four


def _split(matrix: Tensor, rank: int, seed: int, pause: Pause) -> tuple[Pair, Pair]:
    """The leading singular triples of sqrt(|X|) and of sign(X) sqrt(|X|)."""
    root = matrix.abs().sqrt()
    one = balanced(*leading_triples(root, rank, seed=seed, pause=pause))
    return one, balanced(*leading_triples(root * matrix.sign(), rank, seed=seed, pause=pause))


def _swept(matrix: Tensor, start: tuple[Pair, Pair], most: int, total: float, pause: Pause) -> _Product:
    """What sweeps of least squares make of a start."""
    first, second = ((left.double(), right.double()) for left, right in start)
    error = _error(matrix, first, second)
    for _ in range(most):
        if error <= EXACT * total:
            break
        first = _solved(matrix, first[1], second, pause)
        second = _solved(matrix, second[1], first, pause)
        # Both products of one norm: else one grows and the other shrinks without an end.
        sizes = [float(((a.T @ a) * (b @ b.T)).sum().clamp(min=0)) for a, b in (first, second)]
        if min(sizes) > 0:
            balance = (sizes[1] / sizes[0]) ** 0.25
            first, second = (first[0] * balance, first[1]), (second[0] / balance, second[1])
        before, error = error, _error(matrix, first, second)
        if before - error < STILL * error:
            break
    return _Product((first, second), error)


def _solved(matrix: Tensor, right: Tensor, other: Pair, pause: Pause) -> Pair:
    """The factors of one matrix beside the other, the left one for the right one and then the reverse."""
    left = _rows(matrix, right, other, pause)
    return left, _rows(matrix.T, left.T, (other[1].T, other[0].T), pause).T


def _rows(matrix: Tensor, basis: Tensor, other: Pair, pause: Pause) -> Tensor:
    """The rows a (m, r) for which (a @ basis) * (other product) is nearest to the matrix (m, n)."""
    rank, (left, right) = len(basis), other
    one, two = torch.tril_indices(rank, rank, device=matrix.device)
    # The equations are symmetric: half of their values are computed.
    squares = (basis[one] * basis[two]).T
    found: list[Tensor] = []
    for piece in _pieces(matrix):
        pause()
        mask = left[piece] @ right
        half = mask.square() @ squares
        known = mask.mul_(matrix[piece]) @ basis.T
        equations = half.new_empty(len(half), rank, rank)
        equations[:, one, two] = half
        equations[:, two, one] = half
        diagonal = equations.diagonal(dim1=1, dim2=2)
        diagonal += RIDGE * diagonal.mean(1, keepdim=True).clamp(min=1e-30)
        found.append(_linalg.solve(equations, known))
    return torch.cat(found)


def _error(matrix: Tensor, first: Pair, second: Pair) -> float:
    """||X - the product||^2."""
    error = 0.0
    for piece in _pieces(matrix):
        product = (first[0][piece] @ first[1]).mul_(second[0][piece] @ second[1])
        error += float(product.sub_(matrix[piece]).square_().sum())
    return error


def _pieces(matrix: Tensor) -> Iterator[slice]:
    step = max(1, PIECE // matrix.shape[1])
    return (slice(start, start + step) for start in range(0, len(matrix), step))


def _rank_one(
    left: Tensor, values: Tensor, right: Tensor, rank: int, seed: int, pause: Pause
) -> Iterator[tuple[Pair, Pair]]:
    """Starts of which X is the product, where X = U S V^T (m, n) is one: R = r^2 singular triples.

    The product of A1 B1 and A2 B2 has the factors Z (m, R) and W (R, n), of which each row of Z and each
    column of W is a matrix a1 a2^T or b1 b2^T of rank one, flattened. U = Z T for some T: an orthogonal T^T
    is looked for that makes the rows of U T^T nearest to rank one, by turns between the matrices of rank one
    for T and the best T for these. Every other start does the same with V.
    """
    generator = torch.Generator().manual_seed(seed)
    left, values, right = left.double(), values.double(), right.T.double()
    least, most = STARTS
    for number in range(min(most, max(least, LOOKED_AT // (len(left) * len(right))))):
        along, across = (left, right) if number % 2 == 0 else (right, left)
        turn = leading(torch.randn(rank**2, rank**2, generator=generator, dtype=torch.float64)).to(along)
        two = torch.randn(len(along), rank, generator=generator, dtype=torch.float64).to(along)
        one, nearest = two, along
        for _ in range(TURNS):
            pause()
            rows = (along @ turn).reshape(-1, rank, rank)
            one = _best(rows, two)
            two = _best(rows.transpose(1, 2), one)
            nearest = (one[:, :, None] * two[:, None]).flatten(1)
            u, _, v = singular(along.T @ nearest)
            turn = u @ v
        # The rows of `along` are those of an orthonormal basis, with an energy of r^2.
        if energy_of(nearest) < (1 - UNLIKE) * rank**2:
            continue
        u, s, v = _linalg.svd(((across * values) @ turn).reshape(-1, rank, rank))
        size = s[:, :1].sqrt()
        three, four = u[:, :, 0] * size, v[:, 0] * size
        if number % 2 == 0:
            yield (one, three.T), (two, four.T)
        else:
            yield (three, one.T), (four, two.T)


def _best(rows: Tensor, vectors: Tensor) -> Tensor:
    """The vectors a (m, r) for which a b^T is nearest to each matrix (m, r, r), given b (m, r)."""
    found = torch.einsum("mij,mj->mi", rows, vectors)
    return found / vectors.square().sum(1, keepdim=True).clamp(min=1e-300)
