"""The change that comes nearest to each adapter on that adapter's own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ...changes.forms import Additive, Dense
from ...maths.decompositions import eigen
from ...maths.tensors import CPU
from ..deltas import Deltas
from ..elements import added
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
    # In float64: the squares in G double the loss by rounding.
    deltas = replace(deltas, device=CPU).inner()
    changes = [deltas.dense(index).double() for index in range(deltas.count)]
    grams = [one.T @ one / max(float(one.square().sum()), 1e-300) for one in changes]
    total = added(grams)
    values, vectors = eigen(total)
    ridge = options["ridge"] * values[-1]
    live = values > CUT * values[-1]
    inverse = (vectors * torch.where(live, 1 / (values + ridge).clamp(min=1e-300), 0.0)) @ vectors.T
    share = ridge / deltas.count * torch.eye(len(total), dtype=total.dtype)
    terms = zip(changes, grams, deltas.strengths, strict=True)
    merged = added([strength * one @ (gram + share) for one, gram, strength in terms]) @ inverse
    return deltas.lifted([Dense(merged)])


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
