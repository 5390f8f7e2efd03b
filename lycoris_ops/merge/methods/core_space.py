"""Core Space: run another method in the small space that the adapters' inputs and outputs span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...changes.forms import Additive, Dense, LowRank
from ...maths.tensors import compute_dtype
from ..deltas import Deltas
from ..elements import DENSITY, SCALE
from ..method import MergeMethod, Option, Options
from . import dare, magnitude_prune, ties

RULES = {module.METHOD.name: module.METHOD for module in (ties, magnitude_prune, dare)}
"""The methods that can run in the core. Methods that work on factors would give the same result there."""


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = Q_U M Q_V^T, where M is the rule's merge of the cores Q_U^T D_i Q_V, (R, R).

    Q_U and Q_V are orthonormal bases of all adapters' outputs and inputs, from balanced factors (see
    `Deltas.principal`). So no adapter loses anything, and the rank of the result is at most the sum of all
    ranks. If the changes have no small factors, the rule merges them as they are.
    """
    rule = RULES[options["rule"]]
    inner = {name: options[name] for name in ("density", "scale")}
    deltas = deltas.inner()
    if deltas.bases is None:
        return rule.merge(deltas, rule.checked(inner))
    left, right = deltas.principal()
    cores = [[Dense((left.T @ up) @ (down @ right))] for up, down in deltas.factors or ()]
    shape = (left.shape[1], right.shape[1])
    core = replace(deltas, forms=cores, shape=shape, bases=None)
    merged: list[Additive] = []
    for form in rule.merge(core, rule.checked(inner)):
        values = form.dense(compute_dtype(left.dtype), deltas.device)
        merged.append(LowRank(left @ values, right.T, 1.0))
    return deltas.lifted(merged)


METHOD = MergeMethod(
    name="core_space",
    merge=merge,
    source="Panariello et al., Low-Rank Model Merging in Core Space (2509.17786), section 4",
    factors=True,
    options=(
        Option("rule", "ties", "The method that merges in the core space.", choices=tuple(RULES)),
        DENSITY,
        SCALE,
    ),
)
