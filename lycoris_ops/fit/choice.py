"""Choose a layer for each change, so that together they keep most at a given size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..errors import PlanError
from ..ranks.allocate import NOTHING, Candidate, accepting, allocate
from ..ranks.sizes import Budget, Energy, Ratio, Size, bytes_of, parameters_of

NEAR = 0.99
"""Kinds count as equally good if they keep this share of what the best one keeps. The smallest is taken."""
EXACT = 1e-6
"""Shares of the energy count as equal if they differ by less."""


def in_bytes(size: Size) -> bool:
    """Whether a size counts bytes. All others count parameters."""
    return isinstance(size, Budget) and size.size is not None


def by_rank(candidates: Sequence[Candidate], rank: int, *, any_kind: bool) -> Candidate:
    """The source's own layer if its rank is at most this one, else the candidate that keeps most up to it.

    Where all ranks are higher, the candidate that keeps most. With `any_kind`, the smallest of those that
    keep most and are no larger than a LoRA of this rank. NOTHING where there is no candidate.
    """
    if not candidates:
        return NOTHING
    if any_kind:
        loras = [
            c
            for c in candidates
            if c.offer is not None and c.offer.algorithm == "lora" and (c.rank or rank + 1) <= rank
        ]
        most = max((lora.cost for lora in loras), default=0)
        candidates = [c for c in candidates if c.cost <= most] or candidates
        best = max(c.gain for c in candidates) * (1 - EXACT)
        return min((c for c in candidates if c.gain >= best), key=lambda c: c.cost)
    ranked = [c for c in candidates if c.rank is not None and c.rank <= rank]
    own = next((c for c in ranked if c.own), None)
    if own is not None or not ranked:
        return own or max(candidates, key=lambda c: (c.gain, -c.cost))
    # A LoKr with a full w2 competes too, where it is no larger than the largest layer of this rank.
    most = max(c.cost for c in ranked)
    ranked += [c for c in candidates if c.rank is None and c.cost <= most]
    return max(ranked, key=lambda c: (c.gain, -c.cost))


def by_size(
    candidates: Mapping[str, Sequence[Candidate]], size: Size, signal: float, full: int, beside: int
) -> dict[str, Candidate]:
    """For each layer the candidate to take, so that together they keep most at a size.

    Layers without a candidate are left out, and so may be those with NOTHING among them.

    `signal` is the energy of all changes without the noise, `full` the number of values of the weights, and
    `beside` the size of everything else that a budget must hold.

    Raises PlanError for a budget below the smallest adapter, and for a share of the energy that cannot be
    kept.
    """
    offered = {name: each for name, each in candidates.items() if each}
    if not offered:
        return {}
    room = 0
    if isinstance(size, (Budget, Ratio)):
        room = _room(size, full) - beside
        _check_room(offered, size, room, beside)
    elif isinstance(size, Energy) and is_short(candidates, size, signal, full, beside):
        raise PlanError(
            "E-energy-not-reachable", measured=f"{_most(candidates) / signal:.2%}", share=f"{size.share:.2%}"
        )
    return allocate(offered, accepting(size, room, signal, full))


def is_short(
    candidates: Mapping[str, Sequence[Candidate]], size: Size, signal: float, full: int, beside: int
) -> bool:
    """Whether higher ranks must be tried.

    This is so if the largest candidates together keep less than the wanted share of the energy, or do not
    fill the budget.
    """
    if isinstance(size, Energy):
        return _most(candidates) < size.share * signal * (1 - EXACT)
    if isinstance(size, (Budget, Ratio)):
        return beside + sum(map(_largest, candidates.values())) < _room(size, full)
    return False


def complete(candidates: Iterable[Candidate]) -> bool:
    """Whether no higher rank would keep more."""
    return all(c.offer is None or c.offer.complete for c in candidates)


def _largest(candidates: Sequence[Candidate]) -> int:
    """The cost of the largest candidate. Candidates without a rank do not count while higher ranks would keep
    more."""
    every = complete(candidates)
    return max((c.cost for c in candidates if every or c.rank is not None), default=0)


def _most(candidates: Mapping[str, Sequence[Candidate]]) -> float:
    return sum(max((c.gain for c in each), default=0.0) for each in candidates.values())


def _room(size: Budget | Ratio, full: int) -> int:
    """The bytes or parameters of a size."""
    if isinstance(size, Budget) and size.size is not None:
        return bytes_of(size.size)
    return parameters_of(size, full)


def _check_room(
    offered: Mapping[str, Sequence[Candidate]], size: Budget | Ratio, room: int, beside: int
) -> None:
    smallest = min(c.cost for each in offered.values() for c in each if c is not NOTHING)
    if room < smallest:
        unit = "bytes" if in_bytes(size) else "parameters"
        raise PlanError(
            "E-budget-below-smallest-adapter",
            room=f"{room + beside:,}",
            unit=unit,
            smallest=f"{smallest + beside:,}",
        )


def all_of_it(candidates: Sequence[Candidate]) -> Candidate:
    """Compare the largest layer of each kind, and take the smallest that keeps about as much as the best."""
    largest = {id(c.offer): c for c in candidates}.values()
    best = max(c.gain for c in largest)
    return min((c for c in largest if c.gain >= NEAR * best), key=lambda c: c.cost)
