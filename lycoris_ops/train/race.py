"""Find what a training begins with, by small trainings that are compared before it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import DivergedError, FileFormatError, TrainError, number_of
from ..files.json_text import parse_json
from ..ranks.gradients import Loss
from ..ranks.plan import table
from .feed import Batches, Feed
from .network import LycorisNetwork
from .options import TrainOptions
from .tensors import copies, copy_into
from .trainer import Trainer

FORM = 1
"""The version of the JSON."""
SHORTEST = 8
"""The fewest steps of a heat. On the source code of docs/quality.md heats of 8 and 10 steps have the best
rate of planned LoRA as trainings of 120 have it, and that of LoKr nearly."""
LONGEST = 40
"""The most steps of a heat of the climb: rates are found by short ones, and more heats find more."""
MOVED = 0.97
"""A loss above this share of that before any step says that the rate is far too low: the climb goes on by a
whole decade."""
CLIMB = 0.5
"""The share of the budget for the climbs; the rest is for the final heats."""
HEATS = 4
"""How many heats a climb usually has."""
FEWEST = 3
"""With fewer heats no rate lies between two others."""
LONGER, DECIDING = 1.25, 2
"""How many times longer than the others a final heat has to be to tell more, and to tell of the kind. On the
text lines of docs/quality.md heats of 10 steps take the wrong one, those of 20 the right one."""
AS_GOOD = 0.8
"""A rate is as good as the next higher one in a short heat if the loss has fallen by this share of its fall.
As long as a rate is too low, the loss falls in proportion to it; one that is saturated in a short training is
too high for a long one."""
VALIDATED = 0.5
"""What a pass of a held-out batch costs, in steps of one batch: a step goes forth and back."""


@dataclass(frozen=True)
class Entrant:
    """A network that could be trained.

    `make` gives it with a change as at the start of a training, applied to nothing. It may give the same
    network each time, or a new one.
    """

    name: str
    make: Callable[[], LycorisNetwork]
    lr: float
    """The rate at which its climb begins."""
    cost: float = 0.0
    """What making it takes, in steps: a probe, for a plan."""


@dataclass(frozen=True)
class Heat:
    """One small training: a whole one, with its own warm-up and fall of the rate."""

    name: str
    """The entrant."""
    lr: float
    steps: int
    loss: float
    """The held-out loss at its end. It is infinite where a loss on the way was not finite."""
    parameters: int
    final: bool = False


@dataclass(frozen=True)
class RaceStep:
    """How far a race is."""

    heat: int
    """The number of the heat, from 1."""
    of: int
    """How many heats there may be at most."""
    name: str
    lr: float
    step: int
    """The steps of this heat that are done."""
    steps: int
    spent: float
    """What the race has cost so far, and what it may cost, in steps of the training."""
    budget: float
    total: int
    """The steps of the training."""

    def __str__(self) -> str:
        return f"heat {self.heat} of at most {self.of}, {self.name} at {self.lr:g}"


@dataclass(frozen=True)
class Race:
    """The heats in their order, and the entrant and the rate that won."""

    heats: tuple[Heat, ...]
    name: str
    lr: float
    start: float
    """The held-out loss before any step."""
    spent: float
    """What the race has cost, in steps of the training, and what it might have cost."""
    budget: float
    steps: int
    """The steps of the training that it was run for."""
    left_out: tuple[str, ...] = ()
    """The entrants for which the budget was too small."""
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What decided it, see `search_network`."""
    plan: str | None = None
    """The plan of the winner in JSON, where it has one."""

    @property
    def winner(self) -> Heat | None:
        """The heat that won; None where the budget was too small for a race."""
        own = [heat for heat in self.heats if (heat.name, heat.lr) == (self.name, self.lr)]
        return max(own, key=lambda heat: heat.final, default=None)

    def verdict(self) -> str:
        """What was taken and why, in a sentence."""
        won, taken = self.winner, f"{self.name} at {self.lr:g}"
        cost = f"{self.spent:.0f} steps spent of {self.budget:.0f}"
        if won is None:
            return f"nothing was searched: {self.budget:.0f} steps are too few for two heats"
        words = [f"{taken}: {won.loss:.4g} held out after {number_of(won.steps, 'step')}"]
        others = [heat for heat in self.heats if heat.final == won.final]
        # Of another entrant where there is one, else at another rate.
        beaten = [heat for heat in others if heat.name != won.name] or [
            heat for heat in others if heat.lr != won.lr
        ]
        if beaten:
            next_best = min(beaten, key=lambda heat: heat.loss)
            words.append(f"{next_best.name} came to {next_best.loss:.4g} at {next_best.lr:g}")
        if not won.loss < self.start:
            words.append(f"nothing came below the {self.start:.4g} before any step")
        return "; ".join([*words, cost])

    def __str__(self) -> str:
        """The verdict, and a table of the heats with the best first."""
        order = sorted(self.heats, key=lambda heat: (not heat.final, heat.loss))
        head = ("heat", "parameters", "rate", "steps", "held-out loss")
        lines = [
            (heat.name, f"{heat.parameters:,}", f"{heat.lr:g}", str(heat.steps), f"{heat.loss:.4f}")
            for heat in order
        ]
        notes = [f"{self.start:.4f} before any step"] if self.heats else []
        if self.left_out:
            notes.append(f"not raced for want of steps: {', '.join(self.left_out)}")
        return "\n".join([self.verdict(), *(table((head, *lines), texts=1) if lines else ()), *notes])

    def json(self) -> str:
        """The race as JSON; `of_json` gives it back."""
        return json.dumps({"form": FORM, **asdict(self)}, indent=1)

    @classmethod
    def of_json(cls, text: str, file: str | None = None) -> Race:
        """The race of a text that `json` made. Raises FileFormatError for another text."""
        try:
            read: Any = parse_json(text)
            if read.pop("form") != FORM:
                raise ValueError("another version of the form")
            read["heats"] = tuple(Heat(**heat) for heat in read["heats"])
            read["left_out"] = tuple(map(str, read["left_out"]))
            return cls(**read)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                "not the outcome of a race, or one of another version",
                file=file,
                got=f"{type(error).__name__}: {error}",
                hint="Take the file away, and the race is run again",
            ) from error


def race(
    entrants: Sequence[Entrant],
    batches: Batches,
    held_out: Sequence[Any],
    loss: Loss,
    options: TrainOptions,
    *,
    steps: int,
    share: float,
    told: Callable[[RaceStep], None] | None = None,
) -> Race:
    """Find the entrant and the rate with which a training of so many steps comes to the lowest loss.

    A heat is one entrant at one rate, trained as a whole training of fewer steps: with the `options`, its own
    warm-up and fall of the rate, from the first of the `batches`. At its end it is judged by the loss on
    `held_out`, always with the same chance. None goes on from another one, since unfinished trainings
    mislead.

    First each entrant climbs: from its rate up by half decades while the loss falls (by whole ones while it
    hardly falls), and down where the first step up is worse, until the best rate lies between two others. Of
    two that are nearly as good it takes the lower one. Then the best rates of the two best entrants and the
    next best rate of the first are compared in final heats that are as long as the budget allows. So rates
    are found by short heats, which suffice for them, and kinds by longer ones.

    All of it costs at most `share` times `steps` steps: the steps of the heats, the held-out batches at half
    a step each, and what entrants cost to make. A heat that diverges costs its steps up to there. Where the
    budget is too small, the last entrants are left out, then there are no final heats, and with too little
    for two heats the first entrant wins at its first rate.

    The same seed and batches give the same race. One entrant at a time is in training, and afterwards model
    and networks are as they were. `told` is called before each heat and after each step.

    Source: successive halving (Jamieson and Talwalkar, 1502.07943), with a search in place of a grid, and
    heats that begin anew.

    Raises TrainError where there is nothing to race or no heat has a finite loss, and as a Trainer does.
    """
    check_repeatable(batches)
    if not entrants or not held_out or not 0 < share < math.inf:
        raise TrainError(
            "nothing to race",
            got=f"{len(entrants)} entrants, {len(held_out)} held-out batches, a share of {share:g}",
            expected="at least one of each, and a share above 0",
        )
    names = [entrant.name for entrant in entrants]
    if len(set(names)) < len(names):
        raise TrainError("two entrants have one name", got=", ".join(names), expected="a name for each")
    return _Race(entrants, batches, held_out, loss, options, steps, share * steps, told).run()


class _Race:
    """A race that runs."""

    def __init__(
        self,
        entrants: Sequence[Entrant],
        batches: Batches,
        held_out: Sequence[Any],
        loss: Loss,
        options: TrainOptions,
        steps: int,
        budget: float,
        told: Callable[[RaceStep], None] | None,
    ) -> None:
        self.entrants = entrants
        self.batches = batches
        self.held_out = held_out
        self.loss = loss
        self.options = options
        self.steps = steps
        self.budget = budget
        self.told = told
        self.spent = 0.0
        self.start = math.nan
        """The held-out loss before any step, once it was measured."""
        self.heats: list[Heat] = []
        self.judging = judging(held_out, options)
        self.expected = 0
        """How many heats there may be at most."""

    @property
    def left(self) -> float:
        return self.budget - self.spent

    def run(self) -> Race:
        racing = affordable(self.entrants, self.budget, self.judging)
        if not racing:
            first = self.entrants[0]
            return self._outcome(first.name, first.lr, self.entrants[1:])
        self.spent = sum(entrant.cost for entrant in racing) + self.judging
        self.start = self._trained(racing[0], racing[0].lr, 0)[0]
        each = int(CLIMB * self.left / (HEATS * len(racing)) - self.judging)
        each = min(max(each, SHORTEST), LONGEST)
        climbs = {entrant.name: dict[int, Heat]() for entrant in racing}
        climbing = min(self.left, max(CLIMB * self.left, FEWEST * len(racing) * (each + self.judging)))
        self.expected = int(climbing // (each + self.judging)) + 3
        self._climb(racing, climbs, each, self.left - climbing)
        finalists = self._finalists(racing, climbs)
        if finalists:
            # A rate that is not the best costs more than another kind: the one ahead climbs to its end.
            self._climb([finalists[0][0]], climbs, each, 0.0)
            finalists = self._finalists(racing, climbs)
        count = 3 if self._final_length(3) >= DECIDING * each else 2
        finalists = finalists[:count]
        length = self._final_length(len(finalists))
        if len(finalists) < 2 or length < LONGER * each:
            # What is left is of more use to the climbs.
            self._climb(racing, climbs, each, 0.0)
            best = self._finalists(racing, climbs)[:1]
        else:
            finals = [(self._heat(*one, length, final=True).loss, one) for one in finalists]
            finals.sort(key=lambda final: final[0])
            best = [one for loss, one in finals if math.isfinite(loss)]
        if not best:
            lowest = min(heat.lr for heat in self.heats)
            raise TrainError("no heat has a finite loss", expected=f"a rate below {lowest:g}", key="lr")
        winner, lr = best[0]
        left_out = [one for one in self.entrants if one not in racing]
        return self._outcome(winner.name, lr, left_out)

    def _climb(
        self,
        racing: Sequence[Entrant],
        climbs: Mapping[str, dict[int, Heat]],
        steps: int,
        until: float,
    ) -> None:
        """Go on with all climbs in turn, while more than `until` would be left after a heat."""
        going = list(racing)
        while going:
            for entrant in tuple(going):
                found = climbs[entrant.name]
                place = _next({place: heat.loss for place, heat in found.items()}, self.start)
                if place is None or self.left - steps - self.judging < until - 1e-9:
                    going.remove(entrant)
                    continue
                found[place] = self._heat(entrant, rate_at(entrant.lr, place), steps)

    def _finalists(
        self, racing: Sequence[Entrant], climbs: Mapping[str, dict[int, Heat]]
    ) -> list[tuple[Entrant, float]]:
        """The best rate of each entrant, the best first, and after two of them the next rate of the first.

        Short heats sometimes take a rate for the best one that is too high for longer ones.
        """
        found: list[tuple[Entrant, list[Heat]]] = []
        for entrant in racing:
            order = [heat for heat in climbs[entrant.name].values() if math.isfinite(heat.loss)]
            order.sort(key=lambda heat: heat.loss)
            found += [(entrant, self._lowered(order))] if order else []
        found.sort(key=lambda one: one[1][0].loss)
        firsts = [(entrant, heats[0].lr) for entrant, heats in found]
        seconds = [(entrant, heats[1].lr) for entrant, heats in found[:1] if heats[1:]]
        return [*firsts[:2], *seconds, *firsts[2:]]

    def _lowered(self, order: Sequence[Heat]) -> list[Heat]:
        """Heats of one entrant, the best first, with the next lower rate before it where that is as good."""
        best = order[0]
        lower = max((heat for heat in order if heat.lr < best.lr), key=lambda heat: heat.lr, default=None)
        if lower is None or self.start - lower.loss < AS_GOOD * (self.start - best.loss):
            return [*order]
        return [lower, *(heat for heat in order if heat is not lower)]

    def _final_length(self, count: int) -> int:
        # No longer than the training itself.
        return min(self.steps, int(self.left / max(1, count) - self.judging))

    def _heat(self, entrant: Entrant, lr: float, steps: int, *, final: bool = False) -> Heat:
        loss, parameters = self._trained(entrant, lr, steps)
        heat = Heat(entrant.name, lr, steps, loss, parameters, final)
        self.heats.append(heat)
        return heat

    def _trained(self, entrant: Entrant, lr: float, steps: int) -> tuple[float, int]:
        """The held-out loss after a whole training of so many steps, and the number of parameters.

        Network and model are as before, also after an error.
        """
        options = self.options
        warmup = options.warmup if options.warmup < 1 else options.warmup / max(self.steps, options.warmup)
        whole = replace(
            options,
            steps=max(1, steps),
            epochs=None,
            lr=lr,
            warmup=min(warmup, 0.99),
            validate_every=None,
            patience=None,
            checkpoint_every=None,
            output=None,
            checkpoints=None,
            log=None,
        )
        net = entrant.make()
        before = copies(list(net.parameters()))
        parameters = sum(parameter.numel() for parameter in net.parameters())
        try:
            trainer = Trainer(net, self.loss, whole, validation=self.held_out)
            if not self._stepped(trainer, entrant, lr, steps):
                return math.inf, parameters
            self.spent += self.judging * (steps > 0)
            return trainer.validate(), parameters
        except DivergedError:
            return math.inf, parameters
        finally:
            copy_into(list(net.parameters()), before)
            net.restore()

    def _stepped(self, trainer: Trainer, entrant: Entrant, lr: float, steps: int) -> bool:
        """Make the steps; returns whether all losses were finite."""
        feed = Feed(self.batches, self.options.seed)
        self._tell(entrant, lr, 0, steps)
        for _ in range(steps):
            self.spent += 1
            try:
                trainer.step_of(feed)
            except DivergedError:
                # It has looked for the place in another pass.
                self.spent += VALIDATED
                return False
            self._tell(entrant, lr, trainer.done, steps)
        return True

    def _tell(self, entrant: Entrant, lr: float, step: int, steps: int) -> None:
        if self.told and steps:
            number = len(self.heats) + 1
            of = max(self.expected, number)
            self.told(
                RaceStep(number, of, entrant.name, lr, step, steps, self.spent, self.budget, self.steps)
            )

    def _outcome(self, name: str, lr: float, left_out: Sequence[Entrant]) -> Race:
        names = tuple(entrant.name for entrant in left_out)
        return Race(tuple(self.heats), name, lr, self.start, self.spent, self.budget, self.steps, names)


def judging(held_out: Sequence[Any], options: TrainOptions) -> float:
    """What it costs to judge a heat, in steps."""
    return VALIDATED * len(held_out) / options.accumulation


def affordable(entrants: Sequence[Entrant], budget: float, judged: float) -> Sequence[Entrant]:
    """The first entrants, as many as can race for so many steps; none where two heats are too much.

    Several need final heats: short ones sometimes take the wrong kind.

    `judged` is what it costs to judge a heat.
    """
    for count in range(len(entrants), 0, -1):
        room = budget - judged - sum(entrant.cost for entrant in entrants[:count])
        heats, finals = (FEWEST * count, 2) if count > 1 else (2, 0)
        if room >= heats * (SHORTEST + judged) + finals * (DECIDING * SHORTEST + judged):
            return entrants[:count]
    return ()


def check_repeatable(batches: Batches) -> None:
    """Raise TrainError for an iterator: each heat meets the same batches."""
    if isinstance(batches, Iterator):
        raise TrainError(
            "the batches can be gone through only once",
            got="an iterator",
            expected="a list, a loader, or a function of the epoch",
            hint="A race before a training goes through them several times",
        )


def rate_at(lr: float, place: int) -> float:
    """The rate so many half decades above another: 3 and 10/3 times in turn, so that rates are round."""
    return float(f"{lr * 10.0 ** (place // 2) * (3 if place % 2 else 1):.6g}")


def _next(losses: Mapping[int, float], start: float) -> int | None:
    """Where a climb goes next, in half decades from its start; None where the best lies between two others.

    A loss above that before any step counts as infinite: from there it goes down.
    """
    if not losses:
        return 0
    best = min(losses, key=lambda place: (losses[place] > start, losses[place], place))
    if losses[best] > start:
        best = min(losses)
        beside = (best - 1,)
    else:
        little = losses[best] > MOVED * start and best == max(losses)
        beside = (best + 1 + little, best - 1)
    return next((place for place in beside if place not in losses), None)
