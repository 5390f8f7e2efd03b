"""KnOTS: TIES in a basis that all adapters share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...algorithms.fitting import ROUNDING
from ...changes.forms import Additive, LowRank
from ...maths.decompositions import leading, span_of, triples_of
from ..deltas import Deltas
from ..elements import largest_kept, reduced
from ..method import MergeMethod, Option, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = U M, where [D_1 ... D_T] = U [Y_1 ... Y_T] and M is the TIES merge of the Y_i.

    U (O, R) holds the left singular vectors of [D_1 ... D_T], and Y_i = U^T D_i = S V_i^T. The rank of the
    result is at most the sum of all ranks. Changes without small factors are formed as matrices first.
    """
    if deltas.factors is not None:
        basis = leading(torch.cat([up for up, _ in deltas.factors], 1))
        aligned = [(basis.T @ up) @ down for up, down in deltas.factors]
    else:
        basis = None
        aligned = [deltas.dense(index) for index in range(deltas.count)]
    # By QR: the Gram matrix would lose singular values below the square root of the rounding error.
    ((vectors, values, _),) = triples_of(span_of(torch.cat(aligned, 1)))
    turn = vectors[:, : int((values > ROUNDING * values[:1]).sum())]
    aligned = [turn.T @ one for one in aligned]
    kept = [largest_kept(one, options["density"], deltas.pause) for one in aligned]
    merged = reduced(kept, deltas, {"consensus": "ties", **options})
    return [LowRank(turn if basis is None else basis @ turn, merged, 1.0)]


METHOD = MergeMethod(
    name="knots",
    merge=merge,
    source="Stoica et al., Model Merging with SVD to Tie the Knots (2410.19735), section 4",
    factors=True,
    options=(
        Option("density", 0.2, "The share of each adapter's values that TIES keeps.", 0, 1),
        Option(
            "scale", 1.0, "Multiplies the result. The authors used 0.6 to merge eight adapters.", -100, 100
        ),
    ),
)
