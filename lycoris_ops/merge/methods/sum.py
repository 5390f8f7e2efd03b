"""The sum of all changes times their strengths."""

from __future__ import annotations

from collections.abc import Sequence

from ...changes.forms import Additive
from ..deltas import Deltas
from ..elements import SCALE
from ..method import MergeMethod, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = scale * sum of w_i D_i. Nothing is computed: the result is the list of all forms."""
    return deltas.combined([options["scale"] * strength for strength in deltas.strengths])


METHOD = MergeMethod(
    name="sum",
    merge=merge,
    source="Ilharco et al., Editing Models with Task Arithmetic (2212.04089), section 2",
    factors=True,
    options=(SCALE,),
    alone=lambda strength, options: options["scale"] * strength,
)
