"""Short trials of several plans, so that what is chosen is what has trained best."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import DivergedError, PlanError
from ..ranks.gradients import Loss
from ..ranks.plan import Plan, table
from .create import create_lycoris
from .network import LycorisNetwork
from .options import TrainOptions
from .trainer import Trainer

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""The learning rates that are tried for each plan, before the rates of its rows multiply them."""
KEPT = 0.5
"""The share of the candidates that goes on after a round."""


@dataclass(frozen=True)
class Trial:
    """One plan at one learning rate: the held-out loss after so many steps.

    It is infinite where a loss on the way was not finite.
    """

    name: str
    lr: float
    steps: int
    loss: float


@dataclass(frozen=True)
class Trials:
    """All trials, the best first: those that went furthest, and among them the lowest losses."""

    trials: tuple[Trial, ...]
    plans: Mapping[str, Plan]
    start: float
    """The held-out loss of the model alone."""

    @property
    def best(self) -> Trial:
        return self.trials[0]

    @property
    def plan(self) -> Plan:
        """The plan of the best trial."""
        return self.plans[self.best.name]

    @property
    def steps(self) -> int:
        """The steps of all trials together, which is what the choice has cost."""
        return sum(trial.steps for trial in self.trials)

    def __str__(self) -> str:
        head = ("plan", "parameters", "rate", "steps", "held-out loss")
        lines = [
            (
                one.name,
                f"{self.plans[one.name].parameters:,}",
                f"{one.lr:g}",
                str(one.steps),
                f"{one.loss:.4f}",
            )
            for one in self.trials
        ]
        total = f"{self.start:.4f} without an adapter; {self.steps} steps in all"
        return "\n".join([*table((head, *lines), texts=1), "", total])


@dataclass(eq=False)
class _Candidate:
    name: str
    lr: float
    trainer: Trainer
    loss: float = math.inf

    def train(self, batches: Sequence[Any], steps: int) -> None:
        """Go on for so many steps, and measure the loss: infinity where one on the way is not finite."""
        trainer = self.trainer
        with _acting(trainer.net):
            try:
                for _ in range(steps):
                    trainer.step(batches[trainer.done % len(batches)])
                self.loss = trainer.validate()
            except DivergedError:
                self.loss = math.inf


def try_plans(
    module: nn.Module,
    plans: Mapping[str, Plan],
    batches: Sequence[Any],
    held_out: Sequence[Any],
    loss: Loss,
    *,
    rates: Sequence[float] = RATES,
    steps: int = 40,
    rounds: int = 3,
    optimiser: str = "adamw",
    seed: int = 0,
) -> Trials:
    """Train each plan a little at each rate, and the better half of them further, for so many rounds.

    The first round is `steps` steps, each as a Trainer makes them with this `optimiser`. After each round the
    better half, by the loss on `held_out`, goes on where it stopped, for twice as many steps. Every candidate
    meets the `batches` in the same order with the same random numbers, and so does every measurement. Each
    plan is judged at its own best of the `rates`, because methods want different ones. A candidate whose loss
    is not finite goes no further. The model is afterwards as it was.

    Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification" (1502.07943), successive halving.

    Raises PlanError where nothing is given to try, or no candidate has a finite loss, and TrainError as a
    Trainer does.
    """
    for given, what in ((batches, "batches"), (held_out, "held_out")):
        if isinstance(given, Iterator):
            raise PlanError(
                f"{what} can be gone through only once",
                got=type(given).__name__,
                expected="a list or the like: every candidate meets the same ones",
            )
    if not plans or not rates or not batches or not held_out or steps < 1 or rounds < 1:
        raise PlanError(
            "nothing to try",
            got=f"{len(plans)} plans, {len(rates)} rates, {len(batches)} batches, {len(held_out)} held out",
            expected="at least one of each, and steps and rounds from 1",
        )

    def candidate(name: str, plan: Plan, rate: float) -> _Candidate:
        network = create_lycoris(module, plan=plan, seed=seed)
        options = TrainOptions(steps=steps * (2**rounds - 1), lr=rate, optimiser=optimiser, seed=seed)
        with _acting(network):
            return _Candidate(name, rate, Trainer(network, loss, options, validation=held_out))

    every = [candidate(name, plan, rate) for name, plan in plans.items() for rate in rates]
    # A network changes nothing before its first step.
    every[0].train(batches, 0)
    start, going = every[0].loss, every
    for turn in range(rounds):
        for one in going:
            one.train(batches, steps << turn)
        going = sorted((one for one in going if math.isfinite(one.loss)), key=lambda one: one.loss)
        going = going[: max(1, math.ceil(len(going) * KEPT))]
    if not going:
        raise PlanError("no trial has a finite loss", expected=f"lower rates than {min(rates):g}")
    trials = [Trial(one.name, one.lr, one.trainer.done, one.loss) for one in every]
    trials.sort(key=lambda one: (not math.isfinite(one.loss), -one.steps, one.loss))
    return Trials(tuple(trials), dict(plans), start)


@contextmanager
def _acting(network: LycorisNetwork) -> Generator[None]:
    network.apply_to()
    try:
        yield
    finally:
        network.restore()
