"""Divide a budget among layers: a knapsack problem in which each layer takes one candidate.

Steps follow each layer's upper concave hull of gain over cost, in the order of gain per parameter. After each
step the division is the best one of its cost. For a given budget the result is below the optimum by at most
the gain of one step (Sinha and Zoltners, "The Multiple-Choice Knapsack Problem", 1979). Where a step does not
fit, the rest of the budget goes to candidates that do.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ..algorithms.fitting import Offer
from .sizes import Energy, Size


class Candidate(NamedTuple):
    """One choice for a layer: its cost, its gain, and which size of an offer it is."""

    cost: int
    gain: float
    offer: Offer | None = None
    size: int = 0
    """The index of the size in `Offer.ranks`."""

    @property
    def own(self) -> bool:
        """Whether it is the source's own layer."""
        return self.offer is not None and self.offer.own

    @property
    def rank(self) -> int | None:
        return None if self.offer is None else self.offer.ranks[self.size]

    @property
    def parameters(self) -> int:
        return 0 if self.offer is None else self.offer.parameters[self.size]

    @property
    def kept(self) -> float:
        return 0.0 if self.offer is None else self.offer.kept[self.size]


NOTHING = Candidate(0, 0.0)
"""The layer is left out."""


def hull(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates on the upper concave hull of gain over cost, ordered by cost, so that slopes fall.

    The cheapest candidate is always the first. Candidates that gain no more than a cheaper one are not on it.
    """
    kept: list[Candidate] = []
    for each in sorted(candidates, key=lambda candidate: (candidate.cost, -candidate.gain)):
        if kept and each.gain <= kept[-1].gain:
            continue
        while len(kept) > 1 and _slope(kept[-1], each) >= _slope(kept[-2], kept[-1]):
            kept.pop()
        kept.append(each)
    return kept


Accept = Callable[[Candidate, Candidate], bool]
"""Whether to take a step, given the cost and the gain of all that was chosen before, and of the step."""


def allocate(candidates: Mapping[str, Sequence[Candidate]], accept: Accept) -> dict[str, Candidate]:
    """Choose one candidate for each layer, by steps along the hulls in the order of gain per parameter.

    Each layer starts from its cheapest candidate. For a layer that may be left out, include NOTHING among its
    candidates. `accept` says whether a step is taken. Where it refuses one, the layer takes no further step
    along its hull, but other layers go on. Then every candidate that gains more than its layer's present one
    is tried in the same order, even if it is not on the hull. A candidate is not tried again once it is
    refused, so `accept` should not refuse what it would accept later.
    """
    hulls = {path: hull(each) for path, each in candidates.items()}
    chosen = {path: each[0] for path, each in hulls.items()}
    total = Candidate(sum(c.cost for c in chosen.values()), sum(c.gain for c in chosen.values()))
    # Equal slopes are ordered by the layers' places, so that the result is reproducible.
    order = [
        (-_slope(*each[:2]), number, path, 1) for number, (path, each) in enumerate(hulls.items()) if each[1:]
    ]
    heapq.heapify(order)
    while order:
        _, number, path, index = heapq.heappop(order)
        each = hulls[path]
        step = _step(each[index - 1], each[index])
        if not accept(total, step):
            continue
        chosen[path] = each[index]
        total = _sum(total, step)
        if index + 1 < len(each):
            heapq.heappush(order, (-_slope(each[index], each[index + 1]), number, path, index + 1))
    rest = [(path, c) for path, each in candidates.items() for c in each]
    while rest := [
        (path, c) for path, c in rest if c.gain > chosen[path].gain and accept(total, _step(chosen[path], c))
    ]:
        path, better = max(rest, key=lambda each: _slope(chosen[each[0]], each[1]))
        total = _sum(total, _step(chosen[path], better))
        chosen[path] = better
    return chosen


def within(most: int) -> Accept:
    """Accepts steps that keep the total cost within `most`."""
    return lambda total, step: total.cost + step.cost <= most


def accepting(size: Size, most: int, energy: float, full: int) -> Accept:
    """How far a size goes.

    A budget or a ratio accepts steps within the cost `most`, and a share of the energy until the total gain
    is that share of `energy`, within the rounding of the sums. "auto" accepts steps that gain more for each
    parameter than the `full` values of the weights do on average.
    """
    if isinstance(size, Energy):
        return lambda total, _: total.gain < size.share * energy * (1 - 1e-9)
    if size == "auto":
        return lambda _, step: step.gain > energy / max(1, full) * step.cost
    return within(most)


def _step(now: Candidate, other: Candidate) -> Candidate:
    return Candidate(other.cost - now.cost, other.gain - now.gain)


def _sum(first: Candidate, other: Candidate) -> Candidate:
    return Candidate(first.cost + other.cost, first.gain + other.gain)


def _slope(first: Candidate, other: Candidate) -> float:
    return (other.gain - first.gain) / (other.cost - first.cost)
