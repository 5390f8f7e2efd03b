"""TSV-M: make the singular vectors of all adapters orthogonal to each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...changes.forms import Additive
from ...maths.decompositions import Span, triples_of
from ..deltas import Deltas, of_triples
from ..method import MergeMethod, Options

SHARED = 1e-6
"""Singular values below this share of the largest count as 0: there, adapters share a direction."""


def parts(deltas: Deltas, options: Options) -> list[list[Additive]]:
    """For each adapter its part of the result at strength 1."""
    inner = deltas.inner()
    return [inner.lifted(forms) for forms in _parts(inner)]


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = sum of w_i times the `parts`."""
    inner = deltas.inner()
    found = zip(_parts(inner), inner.strengths, strict=True)
    return inner.lifted([form.times(strength) for forms, strength in found for form in forms])


def _parts(deltas: Deltas) -> list[list[Additive]]:
    """For each adapter U'_i S_i V'_i^T.

    U = [U_1 ... U_T] and V likewise hold the k_i leading singular vectors of the D_i, with
    k_i = min(rank of D_i, floor(min(O, K) / T)), and U', V' are the nearest matrices with orthonormal
    columns, the polar factors. So the parts are orthogonal to each other, and each keeps the norm of its
    change. Where adapters share a direction there is no such matrix, and the partial isometry takes its
    place: two equal adapters get half of their change each.
    """
    most = deltas.highest // deltas.count
    triples = deltas.triples()
    kept = [(left[:, :most], values[:most], right[:most]) for left, values, right in triples]
    sizes = [len(values) for _, values, _ in kept]
    joined = torch.cat([left for left, _, _ in kept], 1), torch.cat([right.T for _, _, right in kept], 1)
    lefts, rights = (torch.split(one, sizes, 1) for one in _polars(*joined))
    return [
        [of_triples(left, values, right.T)] if len(values) else []
        for left, right, (_, values, _) in zip(lefts, rights, kept, strict=True)
    ]


def _polars(*matrices: Tensor) -> list[Tensor]:
    """P Q^T of each matrix P S Q^T (m, n), without the directions that are only rounding."""
    found: list[Tensor] = []
    for left, values, right in triples_of(*(Span(None, one, None) for one in matrices)):
        live = values > SHARED * values[:1]
        found.append((left * live.to(left)) @ right)
    return found


METHOD = MergeMethod(
    name="tsv",
    merge=merge,
    source="Gargiulo et al., Task Singular Vectors (2412.00081), algorithm 1",
    factors=True,
    parts=parts,
)
