"""Choose ranks and kinds: from a probe and a size to a plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from ..errors import PlanError
from .allocate import NOTHING, Candidate, accepting, allocate, within
from .plan import Plan, PlanRow
from .probe import Probe, Probed, chosen_algorithms
from .sizes import Budget, Energy, Rank, Ratio, Size, check_size, parameters_of

AUTO: tuple[str, ...] = ("lora",)
"""The kinds that `algorithms="auto"` stands for."""
WORTH = 1.0
"""A plan that captures at most this many times the energy of a uniform LoRA of its size becomes uniform.

On four held-out tasks, plans by another criterion captured 1.01 to 1.32 times the energy of a uniform LoRA
where they were no worse than it, and 0.84 times where they were worse. The text lines of docs/quality.md are
an exception: there such plans captured 0.6 to 0.85 times its energy and were far better, and plans by the
first step captured 1.02 times its energy and were better too."""


def plan_ranks(
    probe: Probe,
    *,
    size: Size = "auto",
    algorithms: str | Sequence[str] = "auto",
    scale: float = 1.0,
    r_min: int = 0,
    r_max: int | None = None,
) -> Plan:
    """Divide a size among the layers of a probe for the largest total gain.

    Each layer gets one kind and one rank, or is left out where `r_min` is 0. `algorithms` are the kinds to
    choose from: a name, several names, "all" (all that the probe knows), or "auto" (lora, or all if the probe
    does not know lora). Ranks are from `r_min` to `r_max`; kinds without ranks are exempt. Layers without any
    gradient are always left out. With a `Rank`, every layer takes the algorithm that gains most at this rank.
    A kind without ranks is a candidate only if it has no more parameters than the largest one with a rank.
    With a budget or a ratio, no layer gets more values than its weight has. alpha is `scale` times the rank,
    so that all layers have the same scale. The plan always states gains as shares of the energy.

    With a budget, a ratio or a rank, candidates are compared by the gain of Adam's first step (see
    `ranks.offers`). With a share of the energy and the size "auto" (see `Size`), they are compared by energy.

    If LoRAs of a divided budget or ratio capture no more energy than one rank on all layers would, the plan
    becomes uniform: every layer gets the highest rank that fits on all, the layers that gain most by it get
    one more, and all start as without a plan (`Plan.refused`). A size too small for rank 1 on all layers
    stays divided.

    Raises PlanError for an impossible size, scale or bound, an unknown algorithm, a budget below the smallest
    plan, a share of the energy that no plan reaches, and where no layer has a candidate.
    """
    size = check_size(size)
    if not 0 < scale < math.inf:
        raise PlanError("E-scale-not-positive", got=str(scale))
    if type(r_min) is not int or r_min < 0 or (r_max is not None and r_max < max(1, r_min)):
        raise PlanError("E-rank-bounds-empty", r_min=r_min, r_max=r_max)
    of_energy = isinstance(size, Energy) or size == "auto"
    known = probe.algorithms
    if not known:
        raise PlanError("E-probe-without-gradients")
    if algorithms == "auto":
        algorithms = tuple(kind for kind in AUTO if kind in known) or "all"
    kinds = chosen_algorithms(algorithms, known)
    exact = size.rank if isinstance(size, Rank) else None
    if exact is not None and not r_min <= exact <= (r_max or exact):
        within_bounds = f"at least {r_min}" if r_max is None else f"from {r_min} to {r_max}"
        raise PlanError("E-rank-out-of-bounds", exact=exact, expected=within_bounds)
    bounds = (exact, exact) if exact is not None else (max(1, r_min), r_max)
    offered = {
        path: layer_offers
        for path, layer in probe.layers.items()
        if (layer_offers := list(_candidates(layer, kinds, bounds, of_energy=of_energy)))
    }
    if not offered:
        raise PlanError("E-ranks-fit-no-weight", got=", ".join(kinds))
    dtype = size.dtype if isinstance(size, Budget) else torch.bfloat16
    if exact is not None:
        return _planned(probe, _by_rank(offered), scale, dtype)
    plan = _planned(probe, _by_size(probe, offered, size, r_min), scale, dtype)
    if isinstance(size, (Budget, Ratio)) and kinds == ("lora",):
        # Equal plans may differ in the last digits of their sums.
        uniform = plan.uniform
        even = _even(probe, offered, parameters_of(size, _full(probe, probe.layers)))
        if uniform is not None and even and plan.gain <= WORTH * uniform * (1 + 1e-9):
            return replace(_planned(probe, even, scale, dtype), refused=plan.gain)
    return plan


def _planned(probe: Probe, chosen: Mapping[str, Candidate], scale: float, dtype: torch.dtype) -> Plan:
    rows = [_row(path, probe, taken, scale) for path, taken in chosen.items() if taken.offer is not None]
    planned = {row.path for row in rows}
    return Plan(
        rows=tuple(rows),
        left_out=tuple(path for path in probe.layers if path not in planned),
        full=_full(probe, probe.layers),
        energy=probe.energy,
        dtype=dtype,
        probe=probe,
    )


def _candidates(
    layer: Probed,
    kinds: Sequence[str],
    bounds: tuple[int, int | None],
    *,
    of_energy: bool,
) -> Iterable[Candidate]:
    """The sizes that a layer could have, each with its gain: of energy, or of the first step.

    If all its ranks are below the bounds, the highest rank is used.
    """
    for offer in layer.offers:
        if offer.algorithm not in kinds:
            continue
        least, most = bounds
        ranked = [rank for rank in offer.ranks if rank is not None]
        least = min(least, max(ranked)) if ranked else least
        worths = offer.kept if of_energy else offer.first_steps
        for index, (rank, worth) in enumerate(zip(offer.ranks, worths, strict=True)):
            if rank is None or least <= rank <= (most or rank) or rank == least:
                yield Candidate(offer.parameters[index], worth, offer, index)


def _by_rank(offered: Mapping[str, Sequence[Candidate]]) -> dict[str, Candidate]:
    """For each layer the candidate that gains most. A candidate without a rank may not be larger than the
    largest with one."""
    chosen: dict[str, Candidate] = {}
    for path, each in offered.items():
        most = max((c.cost for c in each if c.rank is not None), default=math.inf)
        fitting = [c for c in each if c.cost <= most]
        chosen[path] = max(fitting, key=lambda c: (c.gain, -c.cost))
    return chosen


def _by_size(
    probe: Probe, offered: Mapping[str, list[Candidate]], size: Size, r_min: int
) -> dict[str, Candidate]:
    candidates = offered if r_min else {path: [NOTHING, *each] for path, each in offered.items()}
    energy, full, most = probe.energy, _full(probe, probe.layers), 0
    if isinstance(size, (Budget, Ratio)):
        cheapest = [min(c.cost for c in each) for each in offered.values()]
        most, smallest = parameters_of(size, full), sum(cheapest) if r_min else min(cheapest)
        if most < smallest:
            raise PlanError(
                "E-budget-below-least-ranks" if r_min else "E-budget-below-smallest-plan",
                most=f"{most:,}",
                smallest=f"{smallest:,}",
            )
        candidates = {path: _worthy(probe, path, each) for path, each in candidates.items()}
    chosen = allocate(candidates, accepting(size, most, energy, full))
    gained = sum(c.gain for c in chosen.values())
    if isinstance(size, Energy) and gained < size.share * energy * (1 - 1e-6):
        raise PlanError("E-gain-not-reachable", gained=f"{gained / energy:.1%}", expected=f"{size.share:.1%}")
    return chosen


def _even(probe: Probe, offered: Mapping[str, Sequence[Candidate]], most: int) -> dict[str, Candidate] | None:
    """The highest rank that fits on all layers, and one more where that gains most; None if none fits."""
    ranks = {path: _worthy(probe, path, each) for path, each in offered.items()}
    # A layer that has no such rank stays at its highest.
    fitting = [
        index
        for index in range(max(map(len, ranks.values())))
        if sum(each[min(index, len(each) - 1)].cost for each in ranks.values()) <= most
    ]
    if not fitting:
        return None
    best = fitting[-1]
    return allocate({path: each[best : best + 2] or each[-1:] for path, each in ranks.items()}, within(most))


def _worthy(probe: Probe, path: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that hold no more values than the weight, or the cheapest one where all hold more."""
    most = max(_full(probe, [path]), min(c.cost for c in candidates))
    return [c for c in candidates if c.cost <= most]


def _row(path: str, probe: Probe, chosen: Candidate, scale: float) -> PlanRow:
    offer = chosen.offer
    assert offer is not None
    return PlanRow(
        path=path,
        algorithm=offer.algorithm,
        shape=probe.layers[path].shape,
        rank=chosen.rank,
        alpha=scale * (chosen.rank or 1),
        parameters=chosen.parameters,
        gain=chosen.kept / probe.energy,
        factor=offer.factor,
    )


def _full(probe: Probe, paths: Iterable[str]) -> int:
    """The number of values in the full weights of these layers."""
    return sum(math.prod(probe.layers[path].shape) for path in paths)
