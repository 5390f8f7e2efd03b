"""Choose a layer for each change, so that together they keep most at a given size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..algorithms.fitting import Offer
from ..errors import PlanError
from ..ranks.allocate import NOTHING, Candidate, above, allocate, until, within
from ..ranks.sizes import Budget, Energy, Ratio, Size, bytes_of

NEAR = 0.99
"""Kinds count as equally good if they keep this share of what the best one keeps. The smallest is taken."""
EXACT = 1e-6
"""Shares of the energy count as equal if they differ by less."""


@dataclass
class Measured:
    """The layers that one source could become."""

    energy: float
    """The sum of the squares of the change."""
    signal: float
    """The energy without that of the noise, at least 0."""
    noise: float
    """The energy of the noise; 0 where it is not known."""
    complete: bool
    """Whether ranks above `largest` would keep no more."""
    candidates: list[Candidate]
    sure: bool = False
    """Whether the noise is known, so that the size "auto" takes everything except the noise."""
    largest: int = 0
    """The highest rank that was looked at."""
    bias: Tensor | None = None
    offers: Sequence[Offer] = ()
    """The offers of all kinds. They make layers where they are small enough to be kept."""
    own: Offer | None = None
    """The source's own layer. It makes the layer if each source is read only once. Otherwise the layer is
    read again, because it may be as large as the weight."""


def in_bytes(size: Size) -> bool:
    """Whether a size counts bytes. All others count parameters."""
    return isinstance(size, Budget) and size.size is not None


def by_rank(measured: Measured, rank: int, *, any_kind: bool) -> Candidate:
    """The source's own layer if its rank is at most this one, else the candidate that keeps most up to it.

    Where all ranks are higher, the candidate that keeps most. With `any_kind`, the smallest of those that
    keep most and are no larger than a LoRA of this rank. NOTHING where there is no candidate.
    """
    candidates = measured.candidates
    if not candidates:
        return NOTHING
    if any_kind:
        loras = [
            one
            for one in candidates
            if one.offer is not None and one.offer.algorithm == "lora" and (one.rank or rank + 1) <= rank
        ]
        most = max((lora.cost for lora in loras), default=0)
        candidates = [c for c in candidates if c.cost <= most] or candidates
        best = max(c.gain for c in candidates) * (1 - EXACT)
        return min((c for c in candidates if c.gain >= best), key=lambda c: c.cost)
    ranked = [one for one in candidates if one.rank is not None and one.rank <= rank]
    own = next((one for one in ranked if one.offer is measured.own), None)
    if own is not None or not ranked:
        return own or max(candidates, key=lambda c: (c.gain, -c.cost))
    # A LoKr with a full w2 competes too, where it is no larger than the largest layer of this rank.
    most = max(c.cost for c in ranked)
    ranked += [one for one in candidates if one.rank is None and one.cost <= most]
    return max(ranked, key=lambda c: (c.gain, -c.cost))


def by_size(measured: Mapping[str, Measured], size: Size, full: int, beside: int) -> dict[str, Candidate]:
    """For each layer the candidate to take, so that together they keep most at a size.

    Layers that get no candidate are left out.

    `full` is the number of values of the weights, and `beside` the size of everything else that a budget must
    hold.

    Raises PlanError for a budget below the smallest adapter, and for a share of the energy that cannot be
    kept.
    """
    offered = {name: [NOTHING, *each.candidates] for name, each in measured.items() if each.candidates}
    if not offered:
        return {}
    if isinstance(size, (Budget, Ratio)):
        return _within(offered, size, full, beside)
    signal = sum(each.signal for each in measured.values())
    if isinstance(size, Energy):
        if is_short(measured, size, full, beside):
            raise PlanError(
                "layers of this kind cannot keep that much",
                got=f"at most {_most(measured) / signal:.2%}",
                expected=f"{size.share:.2%} of the energy",
                hint="Ask for less, for higher ranks, or for another kind (lora or full keep everything)",
            )
        return allocate(offered, until(size.share * signal))
    for name, own in measured.items():
        if own.sure and own.candidates:
            offered[name] = [_all_of_it(own.candidates)]
    return allocate(offered, above(signal / max(1, full)))


def is_short(measured: Mapping[str, Measured], size: Size, full: int, beside: int) -> bool:
    """Whether higher ranks must be tried.

    This is so if the largest candidates together keep less than the wanted share of the energy, or do not
    fill the budget.
    """
    if isinstance(size, Energy):
        wanted = size.share * sum(each.signal for each in measured.values())
        return _most(measured) < wanted * (1 - EXACT)
    if isinstance(size, (Budget, Ratio)):
        return beside + sum(map(_largest, measured.values())) < _room(size, full)
    return False


def _largest(measured: Measured) -> int:
    """The cost of the largest candidate. Candidates without a rank do not count while higher ranks would keep
    more."""
    found = [one for one in measured.candidates if measured.complete or one.rank is not None]
    return max((c.cost for c in found), default=0)


def _most(measured: Mapping[str, Measured]) -> float:
    return sum(max((c.gain for c in each.candidates), default=0.0) for each in measured.values())


def _room(size: Budget | Ratio, full: int) -> int:
    """The bytes or parameters of a size."""
    if isinstance(size, Ratio):
        return int(full / size.ratio)
    return size.most if size.size is None else bytes_of(size.size)


def _within(
    offered: Mapping[str, Sequence[Candidate]], size: Budget | Ratio, full: int, beside: int
) -> dict[str, Candidate]:
    most, unit = _room(size, full), "bytes" if in_bytes(size) else "parameters"
    smallest = beside + min(one.cost for each in offered.values() for one in each if one is not NOTHING)
    if most < smallest:
        raise PlanError(
            "the budget is below the smallest adapter",
            got=f"{most:,} {unit}",
            expected=f"at least {smallest:,} {unit} for one layer",
            hint="Ask for more, or for a kind that takes less (lokr)",
        )
    return allocate(offered, within(most - beside))


def _all_of_it(candidates: Sequence[Candidate]) -> Candidate:
    """Compare the largest layer of each kind, and take the smallest that keeps about as much as the best."""
    largest = {id(one.offer): one for one in candidates}.values()
    best = max(c.gain for c in largest)
    return min((c for c in largest if c.gain >= NEAR * best), key=lambda c: c.cost)
