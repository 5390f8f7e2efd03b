"""The change that comes nearest to each adapter on that adapter's own inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...changes.forms import Additive, Dense, LowRank
from ...maths.decompositions import eigen, leading
from ...maths.tensors import wide
from ..deltas import Deltas
from ..method import MergeMethod, Option, Options

CUT = 1e-7
"""Eigenvalues of the sum of all G_i below this share of the largest one count as 0."""


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = (sum of w_i D_i (G_i + mu / T)) (sum of G_i + mu)^+, with G_i = D_i^T D_i / ||D_i||^2.

    With ridge mu = 0, D is the change of least norm that minimises the sum of ||(D - w_i D_i) D_i^T||^2 /
    ||D_i||^2: the inputs of an adapter are taken to lie in the row space of its change. Adapters with
    independent row spaces each act on their own inputs as if they were alone. Adapters with orthogonal row
    spaces add up, and equal adapters count once. A large mu gives the average. mu is in units of the largest
    eigenvalue of the sum of G_i.
    """
    if deltas.factors is not None:
        basis = leading(torch.cat([down for _, down in deltas.factors]).T)
        pairs = [(wide(up), wide(down @ basis)) for up, down in deltas.factors]
    else:
        basis, pairs = None, [(None, wide(deltas.dense(index))) for index in range(deltas.count)]
    size = pairs[0][1].shape[1]
    total = pairs[0][1].new_zeros(size, size)
    grams: list[Tensor] = []
    for index, (up, down) in enumerate(pairs):
        middle = down if up is None else (up.T @ up) @ down
        norm = max(float(deltas.gram[index, index]), 1e-300)
        grams.append(down.T @ middle / norm)
        total += grams[-1]
    values, vectors = eigen(total)
    ridge = options["ridge"] * values[-1]
    live = values > CUT * values[-1]
    inverse = (vectors * torch.where(live, 1 / (values + ridge).clamp(min=1e-300), 0.0)) @ vectors.T
    eye = torch.eye(size).to(total)
    merged: list[Additive] = []
    for (up, down), gram, strength in zip(pairs, grams, deltas.strengths, strict=True):
        right = (strength * down @ (gram + ridge / deltas.count * eye) @ inverse).to(
            deltas.device, torch.float32
        )
        if basis is None or up is None:
            merged.append(Dense(right))
        else:
            merged.append(LowRank(up.to(right), right @ basis.T, 1.0))
    return merged


METHOD = MergeMethod(
    name="regression",
    merge=merge,
    source="Jin et al., RegMean (2212.09849), eq. 2, with the inputs of WUDI (2503.08099), section 4",
    factors=True,
    options=(
        Option(
            "ridge",
            0.0,
            "0: every adapter acts on its own inputs as if alone. Larger values go towards the average.",
            0,
            1e6,
        ),
    ),
)
