"""Plans that are kept from one application of a stack to the next."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import ref

import torch

from ..files.cache import DEFAULT_CACHE, TensorCache
from ..patch import PatchPlan
from .resolve import Match
from .stack import Entry


def kept_plan(
    shape: Sequence[int], pairs: Sequence[tuple[Entry, Match]], *, cache: TensorCache = DEFAULT_CACHE
) -> PatchPlan:
    """The plan of the layers that meet a weight, made anew only where one of them is another.

    A plan kept does for every strength: its own `strengths` are those of the first time. What is kept
    counts against the cache's bound.
    """
    # By weak references: what is kept must not keep an adapter in memory, which the bound does not count.
    met = tuple(
        (ref(entry.adapter), match.layer, match.parameter, match.target.rows, match.window)
        for entry, match in pairs
    )

    def make() -> PatchPlan:
        layers = [(match.read(entry.adapter), match.strength) for entry, match in pairs]
        return PatchPlan.build(shape, torch.float32, "cpu", layers)

    return cache.fetch_any(("plan", tuple(shape), met), make, _size)


def _size(plan: PatchPlan) -> int:
    return sum(tensor.nbytes for tensor in plan.tensors)
