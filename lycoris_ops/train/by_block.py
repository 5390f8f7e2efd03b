"""The algorithm of each block of layers, found by short trials: what captured energy cannot judge."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..errors import PlanError
from ..names.blocks import Blocks
from ..names.targets import Targets
from ..ranks.choice import plan_ranks
from ..ranks.gradients import Loss
from ..ranks.plan import Plan, Row
from ..ranks.probe import Probe, chosen_algorithms
from ..ranks.sizes import Budget, Size
from .trials import RATES, Trials, try_plans

KINDS = ("lora", "loha", "lokr")
"""The algorithms that are tried unless others are asked for."""
MIXED = "by block"
"""The name of the plan in which each block has the algorithm that was best for it."""


def try_algorithms(
    module: nn.Module,
    probe: Probe,
    batches: Sequence[Any],
    held_out: Sequence[Any],
    loss: Loss,
    *,
    size: Size = "auto",
    algorithms: Sequence[str] = KINDS,
    blocks: int = 8,
    rates: Sequence[float] = RATES,
    steps: int = 40,
    rounds: int = 3,
    seed: int = 0,
) -> Trials:
    """Choose the algorithm of each block of layers by short trials, each kind at its own learning rate.

    1. A plan of each algorithm alone is tried at all `rates`, by `try_plans`. The first algorithm has the
       `size`, the others get as many parameters. This finds the best one for all layers, and each one's rate.
    2. In the plan of the best one a block at a time is given another algorithm, with as many parameters as it
       had and at that algorithm's rate, and is trained for `steps` steps.
    3. The plan in which each block has what was best for it is trained for as long as that of the best
       algorithm was.

    The plan that is found is one of the first or third part, whichever has the lowest loss. Its rows have
    their rates as multiples of `best.lr`. Blocks are those that block rules name (`encoder.3`),
    neighbours joined to at most so many `blocks`. All else is as in `try_plans`.

    Raises PlanError for an algorithm that the probe has no offer of, where fewer than two have a plan of this
    size, and as `plan_ranks` and `try_plans` do.
    """
    first, *others = chosen_algorithms(algorithms, probe.algorithms)
    plans = {first: plan_ranks(probe, size=size, algorithms=first)}
    plans |= _plans(probe, plans[first].parameters, others)
    if len(plans) < 2 or blocks < 1:
        raise PlanError(
            "there is nothing to choose from",
            got=f"{', '.join(plans)} in {blocks} blocks",
            expected="two algorithms with a plan of this size, and at least one block",
        )

    def tried(plans: Mapping[str, Plan], rates: Sequence[float], rounds: int) -> Trials:
        return try_plans(
            module, plans, batches, held_out, loss, rates=rates, steps=steps, rounds=rounds, seed=seed
        )

    found = tried(plans, rates, rounds)
    base, kind, lr = found.plan, found.best.name, found.best.lr
    # Trials are in order, so that the first of an algorithm is its best.
    own = {name: next(trial.lr for trial in found.trials if trial.name == name) for name in plans}
    swaps: dict[str, _Swap] = {}
    for block, paths in blocks_of([row.path for row in base], blocks).items():
        room = sum(base[path].parameters for path in paths)
        part = replace(probe, layers={path: probe.layers[path] for path in paths})
        for name, plan in _plans(part, room, [name for name in plans if name != kind]).items():
            rows = [_moved(row, part.energy / probe.energy, own[name] / lr) for row in plan]
            swaps[f"{block}: {name}"] = _Swap(frozenset(paths), rows)
    if not swaps:
        return found
    single = tried({kind: base} | {name: swap.of(base, probe) for name, swap in swaps.items()}, [lr], 1)
    better = list(itertools.takewhile(lambda name: name != kind, (trial.name for trial in single.trials)))
    found = found.joined(single)
    if not better:
        return found
    mixed, given = base, frozenset[str]()
    for swap in map(swaps.__getitem__, better):
        # The best of each block comes first.
        if not swap.paths & given:
            mixed, given = swap.of(mixed, probe), given | swap.paths
    return found.joined(tried({MIXED: mixed}, [lr], rounds))


@dataclass(frozen=True)
class _Swap:
    """Other rows for the layers of a block."""

    paths: frozenset[str]
    rows: Sequence[Row]

    def of(self, plan: Plan, probe: Probe) -> Plan:
        """The plan with these rows in place of its own."""
        rows = {row.path: row for row in plan if row.path not in self.paths}
        rows |= {row.path: row for row in self.rows}
        return replace(
            plan,
            rows=tuple(rows[path] for path in probe.layers if path in rows),
            left_out=tuple(path for path in probe.layers if path not in rows),
        )


def blocks_of(paths: Sequence[str], most: int) -> dict[str, list[str]]:
    """The layers of each block, by the name that rules have for it.

    A layer that rules have no name for, as some of OpenCLIP, is a block of its own. Neighbours are joined
    where there are more than `most`.
    """
    weights = {f"{path}.weight".lstrip("."): path for path in paths}
    targets = Targets(dict.fromkeys(weights, ()))
    blocks = Blocks(targets)
    named = {target.key: blocks.of(target).block for target in targets.all}
    found: dict[str, list[str]] = {}
    for weight, path in weights.items():
        found.setdefault(named.get(weight, path), []).append(path)
    names, count = list(found), min(most, len(found))
    joined: dict[str, list[str]] = {}
    for place in range(count):
        group = names[place * len(names) // count : (place + 1) * len(names) // count]
        name = group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}"
        joined[name] = [path for each in group for path in found[each]]
    return joined


def _plans(probe: Probe, parameters: int, kinds: Iterable[str]) -> dict[str, Plan]:
    """A plan of each of these algorithms that has one within so many parameters."""
    found: dict[str, Plan] = {}
    for kind in kinds:
        offers = [offer for layer in probe.layers.values() for offer in layer.offers]
        if any(min(offer.parameters) <= parameters for offer in offers if offer.algorithm == kind):
            found[kind] = plan_ranks(probe, size=Budget(parameters=parameters), algorithms=kind)
    return found


def _moved(row: Row, energy: float, rate: float) -> Row:
    """The row of a part of a probe, whose share of the energy this is, as one of the whole."""
    gain = None if row.gain is None else row.gain * energy
    return replace(row, gain=gain, lr=row.lr * rate)
