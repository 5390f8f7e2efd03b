"""Iso-C: make all directions of the sum equally strong."""

from __future__ import annotations

from collections.abc import Sequence

from ...changes.forms import Additive
from ...maths.decompositions import span_of, triples_of
from ..deltas import Deltas, of_triples
from ..elements import SCALE, added
from ..method import MergeMethod, Option, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = scale * P S' Q^T, where sum of w_i D_i = P S Q^T and S' = (1 - amount) S + amount * mean(S).

    With `directions` "own" the mean is over the r nonzero values of S, where r is the rank of the sum. With
    "all" it is over all min(O, K), as in the authors' code: most of a low-rank change then goes into
    arbitrary directions that no adapter has.
    """
    if options["directions"] == "all":
        total = added(deltas.weighted())
        deltas.pause()
        ((left, values, right),) = triples_of(span_of(total))
    else:
        deltas = deltas.inner()
        left, values, right = deltas.triples_of(deltas.combined(deltas.strengths))
    if not len(values):
        return []
    values = (1 - options["amount"]) * values + options["amount"] * values.mean()
    return deltas.lifted([of_triples(left, options["scale"] * values, right)])


METHOD = MergeMethod(
    name="iso",
    merge=merge,
    source="Marczak et al., No Task Left Behind: Isotropic Model Merging (2502.04959), section 4.1",
    factors=True,
    options=(
        Option("amount", 1.0, "How far the strengths of directions are made equal. 0 is the sum.", 0, 1),
        Option(
            "directions",
            "own",
            "Which directions become equal. own: those that the sum has. all: those of the whole weight, as "
            "in the authors' code.",
            choices=("own", "all"),
        ),
        SCALE,
    ),
)
