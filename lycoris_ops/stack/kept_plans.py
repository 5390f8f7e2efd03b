"""Patch plans, cached from one application of a stack to the next."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import ref

from ..files.cache import DEFAULT_CACHE, TensorCache
from ..patch.plan import PatchPlan
from .resolve import Match
from .stack import Entry


def kept_plan(
    shape: Sequence[int],
    pairs: Sequence[tuple[Entry, Match]],
    *,
    cache: TensorCache = DEFAULT_CACHE,
) -> PatchPlan:
    """The plan for these layers and a weight of this shape, from the cache where possible.

    Other layers or rows need a new plan; other strengths do not. The `strengths` of a kept plan are those of
    its first use, so callers must give their own to `apply_`. The tensors of a kept plan count against the
    cache's bound.
    """
    # Weak references: a cached plan must not keep adapters in memory, which the cache's bound does not count.
    met = tuple(
        (ref(entry.adapter), match.layer, match.parameter, match.target.rows, match.window)
        for entry, match in pairs
    )

    def make() -> PatchPlan:
        layers = [(match.read(entry.adapter), match.strength) for entry, match in pairs]
        return PatchPlan.build(shape, "cpu", layers)

    return cache.fetch_any(
        ("plan", tuple(shape), met), make, lambda plan: sum(tensor.nbytes for tensor in plan.tensors)
    )
