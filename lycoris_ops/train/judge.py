"""Which of several adapters is best at which strength, by the held-out loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import TrainError
from ..maths.chance import Chance
from ..modules.statistics import evaluating
from ..ranks.gradients import Loss, scalar
from .judgement import ALONE, Judgement, Place, mean
from .network import LycorisNetwork


@dataclass(frozen=True)
class Contender:
    """An adapter that is judged.

    `make` gives its network for the model, not applied yet. It may give the same network each time, or a new
    one.
    """

    name: str
    make: Callable[[], LycorisNetwork]


def judge(
    module: nn.Module,
    contenders: Sequence[Contender],
    strengths: Sequence[float],
    batches: Sequence[Any],
    loss: Loss,
    *,
    order: Sequence[int] | None = None,
    share: float = 0.2,
    seed: int = 0,
    told: Callable[[int, int], None] | None = None,
) -> Judgement:
    """Find the contender and the strength with the lowest mean of `loss(module, batch)` on held-out batches.

    Each pair of a contender and a strength, and the model alone, sees the same batches with the same random
    numbers: batch k draws from `Chance(seed, "validation", k)`, as in a training's own validation. So
    differences are far more exact than losses. Strength 0 is the model alone, which is judged in any case.

    By successive halving (Karnin, Koren and Somekh, "Almost optimal exploration in multi-armed bandits",
    2013, algorithm 1; on a fixed set of draws as in Jamieson and Talwalkar, 1502.07943): all pairs begin. In
    each of log2(n) rounds the remaining pairs are measured on further batches, and the worse half drops out.
    Every round has the same number of passes, so the last pairs are measured on the most batches. The total
    is `share` of the passes that all pairs on all batches would take, but at least one for each pair in each
    of its rounds. With a share of 1 none drops out.

    `order` lists the numbers of the batches in the order of their use: the first few should represent all.
    `told` is called with the number of passes done and the largest number that there may be. Afterwards the
    model is as it was.

    A loss that is not finite counts as infinite, so its pair is the worst. Raises TrainError where there is
    nothing to judge, where no pair that is left at the end has a finite loss, and for a share of 0, below 0
    or above 1.
    """
    kept = tuple(dict.fromkeys(strength for strength in strengths if strength))
    if not (contenders and kept and batches and 0 < share <= 1):
        raise TrainError(
            "E-nothing-to-judge",
            adapters=len(contenders),
            strengths=len(kept),
            batches=len(batches),
            share=f"{share:g}",
        )
    numbers = range(len(batches)) if order is None else order

    def measured(pair: Place, draws: range) -> list[float]:
        losses_found: list[float] = []
        row, column = pair
        beside = nullcontext() if pair == ALONE else acting(contenders[row].make(), kept[column])
        with evaluating(module.modules()), beside, torch.no_grad():
            for number in numbers[draws.start : draws.stop]:
                with Chance(seed, "validation", number).drawn():
                    losses_found.append(float(scalar(loss(module, batches[number]), TrainError)))
        return losses_found

    pairs: list[Place] = [(row, column) for row in range(len(contenders)) for column in range(len(kept))]
    losses = halved([ALONE, *pairs], measured, len(numbers), share, told)
    result = Judgement(tuple(contender.name for contender in contenders), kept, losses, len(numbers))
    if not math.isfinite(mean(losses[result.best])):
        raise TrainError(
            "E-judge-no-finite-loss", name=result.names[result.best[0]], losse=mean(losses[result.best])
        )
    return result


def halved(
    pairs: Sequence[Place],
    measure: Callable[[Place, range], Sequence[float]],
    count: int,
    share: float,
    told: Callable[[int, int], None] | None = None,
) -> dict[Place, tuple[float, ...]]:
    """The losses of each place on the first of `count` draws; a place that dropped out has fewer. See
    `judge`.

    `measure(place, numbers)` gives the losses of a place on the draws with these numbers.
    """
    losses: dict[Place, tuple[float, ...]] = dict.fromkeys(pairs, ())
    budget = share * len(pairs) * count
    rounds = math.ceil(math.log2(len(pairs))) if share < 1 else 1
    left, done, spent = list(pairs), 0, 0
    for number in range(rounds):
        room = (budget - spent) / (rounds - number)
        more = min(count - done, max(1, int(room / len(left))))
        if not more:
            break
        for pair in left:
            losses[pair] += tuple(measure(pair, range(done, done + more)))
            spent += more
            if told:
                told(spent, max(spent, round(budget)))
        done += more
        # Sorted by contender, so that a contender that loads its network loads it once a round.
        ranked = sorted(left, key=lambda pair: mean(losses[pair]))
        left = sorted(ranked[: -(-len(left) // 2)])
    return losses


@contextmanager
def acting(network: LycorisNetwork, strength: float) -> Generator[None]:
    """A context in which a network acts on its model at a strength, without dropout, as in use."""
    with evaluating(network.modules()), network.at(strength):
        try:
            network.apply_to()
            yield
        finally:
            network.restore()
