"""Iso-C: all directions of the sum made equally strong."""

from __future__ import annotations

from collections.abc import Sequence

from ...changes.forms import Additive
from ..deltas import Deltas, of_triples
from ..elements import SCALE
from ..method import MergeMethod, Option, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = scale * P S' Q^T, where sum of w_i D_i = P S Q^T and S' = (1 - amount) S + amount * mean(S).

    The mean is over the true rank of the sum. The authors' code takes it over all directions, which puts most
    of the change of a low rank into directions that no adapter has.
    """
    left, values, right = deltas.triples_of(deltas.combined(deltas.strengths))
    if not len(values):
        return []
    values = (1 - options["amount"]) * values + options["amount"] * values.mean()
    return [of_triples(left, options["scale"] * values, right)]


METHOD = MergeMethod(
    name="iso",
    merge=merge,
    source="Marczak et al., No Task Left Behind: Isotropic Model Merging (2502.04959), section 4.1",
    factors=True,
    options=(
        Option("amount", 1.0, "How far the strengths of directions are made equal. 0 is the sum.", 0, 1),
        SCALE,
    ),
)
