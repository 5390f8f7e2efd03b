"""Choose a training's network and learning rate by comparing small trainings before it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .. import processes
from ..errors import DivergedError, FileFormatError, TrainError
from ..files.json_text import parse_json
from ..messages import phrase
from ..ranks.gradients import Loss
from ..ranks.plan import table
from .feed import Batches, Feed, first_of, times_larger
from .network import LycorisNetwork
from .optimisers import family_of
from .options import TrainOptions
from .tensors import copies, copy_into
from .trainer import Trainer

FORM = 1
"""The version of the JSON."""
SHORTEST, FIRST_OF, LONG = 8, 24, 50
"""The fewest steps of a heat: if there is one entrant, if the budget lets only the first of several race,
and if several race. On the tasks of docs/quality.md shorter heats often choose kinds and rates that end
higher."""
CLIMB = 4
"""The most heats of one entrant that races alone. There are fewer, but at least two, if they would be shorter
than LONG."""
FALLEN = 0.03
"""If the loss falls by less than this share of the loss before any step, the rate is far too low, and the
climb goes up by a whole decade."""
LINEAR = 0.5
"""The climb also goes up by a decade if the fall of the loss grows at least with this power of the rate. At
rates that are too low the fall is proportional to the rate."""
VALIDATED = 0.5
"""The cost of a held-out batch, in steps on a batch of its size. A step also goes backward."""


@dataclass(frozen=True)
class Entrant:
    """A network that could be trained.

    `make` returns the network in its initial state, not applied: the same one each time or a new one.
    """

    name: str
    make: Callable[[], LycorisNetwork]
    lr: float
    """The rate at which its climb begins."""
    cost: float = 0.0
    """The cost of making the network, such as a plan's probe, in steps of the training."""
    step: float = 1.0
    """The cost of one of its steps, in steps of the training: above 1 for a slower kind."""


@dataclass(frozen=True)
class Heat:
    """One small but complete training, with its own warm-up and schedule."""

    name: str
    """The entrant."""
    lr: float
    steps: int
    loss: float
    """The held-out loss at its end; infinite if it diverged."""
    parameters: int


@dataclass(frozen=True)
class RaceStep:
    """How far a race has come."""

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
    """The cost of the race so far, in steps of the training."""
    budget: float
    """The most that it may cost."""
    total: int
    """The steps of the training."""

    def __str__(self) -> str:
        return phrase("R-heat-at-most-at", heat=self.heat, of=self.of, name=self.name, lr=self.lr)


@dataclass(frozen=True)
class Race:
    """The heats in their order, and the entrant and the rate that won."""

    heats: tuple[Heat, ...]
    name: str
    lr: float
    start: float
    """The held-out loss before any step."""
    spent: float
    """The cost of the race, in steps of the training."""
    budget: float
    """The most that it might have cost."""
    steps: int
    """The steps of the training that it was run for."""
    left_out: tuple[str, ...] = ()
    """The entrants for which the budget was too small."""
    unsuited: tuple[str, ...] = ()
    """The kinds that could not be made for this race, each with the reason."""
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What it was run for, to decide whether it can be reused, see `search_network`."""
    plan: str | None = None
    """The plan of the winner in JSON, where it has one."""

    @property
    def winner(self) -> Heat | None:
        """The heat that won; None where the budget was too small for a race."""
        own = (heat for heat in self.heats if (heat.name, heat.lr) == (self.name, self.lr))
        return next(own, None)

    def verdict(self) -> str:
        """The choice and the reason for it, in a sentence."""
        won, taken = self.winner, phrase("R-at-2", name=self.name, lr=self.lr)
        cost = phrase("R-steps-spent", spent=self.spent, budget=self.budget)
        if won is None:
            return phrase("R-nothing-was-searched-steps-too", budget=self.budget)
        words = [phrase("R-held-out-after", taken=taken, loss=won.loss, steps=won.steps)]
        # Compare with another entrant if there is one, else with another rate.
        beaten = [heat for heat in self.heats if heat.name != won.name] or [
            heat for heat in self.heats if heat.lr != won.lr
        ]
        if beaten:
            next_best = min(beaten, key=lambda heat: heat.loss)
            words.append(phrase("R-came-at", name=next_best.name, loss=next_best.loss, lr=next_best.lr))
        rates = sorted(heat.lr for heat in self.heats if heat.name == won.name)
        if won.lr in (rates[0], rates[-1]) and len(rates) > 1:
            end, other = ("lowest", "lower") if won.lr == rates[0] else ("highest", "higher")
            words.append(phrase("R-rate-was-tried-one-may", end=end, other=other))
        if not won.loss < self.start:
            words.append(phrase("R-no-loss-fell-below-before", start=self.start))
        return "; ".join([*words, cost])

    def missed(self) -> list[str]:
        """Lines that say which kinds did not race, and why; none where all raced."""
        short = [phrase("R-too-few-steps-race", left_out=self.left_out)] if self.left_out else []
        return [*short, *(phrase("R-not-raced", kind=kind) for kind in self.unsuited)]

    def __str__(self) -> str:
        """The verdict, and a table of the heats with the best first."""
        order = sorted(self.heats, key=lambda heat: heat.loss)
        head = ("heat", "parameters", "rate", "steps", phrase("R-held-out-loss"))
        lines = [
            (heat.name, f"{heat.parameters:,}", f"{heat.lr:g}", str(heat.steps), f"{heat.loss:.4f}")
            for heat in order
        ]
        notes = [phrase("R-before-any-step", start=self.start)] if self.heats else []
        return "\n".join(
            [self.verdict(), *(table((head, *lines), texts=1) if lines else ()), *notes, *self.missed()]
        )

    def json(self) -> str:
        """The race as JSON; `of_json` gives it back."""
        return json.dumps({"form": FORM, **asdict(self)}, indent=1)

    @classmethod
    def of_json(cls, text: str, file: str | None = None) -> Race:
        """Read a race that `json` wrote. Raises FileFormatError for any other text."""
        try:
            read: Any = parse_json(text)
            if read.pop("form") != FORM:
                raise ValueError(phrase("R-another-version-form"))
            read["heats"] = tuple(Heat(**heat) for heat in read["heats"])
            read["left_out"] = tuple(map(str, read["left_out"]))
            read["unsuited"] = tuple(map(str, read.get("unsuited", ())))
            return cls(**read)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                "E-race-damaged", file=file, name=type(error).__name__, error=error
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
    """Find the entrant and the rate with which a training of `steps` steps reaches the lowest loss.

    A heat trains one entrant at one rate, as a complete training of fewer steps: with the `options`, its own
    warm-up and schedule, from the first of the `batches`. It is judged by its final loss on `held_out`,
    always with the same random numbers. No heat continues another, since unfinished trainings mislead. All
    heats have the same length.

    Each entrant has a heat at its own rate. If the loss has not fallen, further heats go down by half
    decades; if it has hardly fallen, they go up by a decade, or by half a decade where that is too much. The
    entrant with the lowest loss wins. With the rest of the budget it tries the rate a quarter of a decade
    above its own, and half a decade below if that is worse. It goes on by decades while the loss falls nearly
    in proportion to the rate. The rate with the lowest loss wins. Long heats tell more than many, so heats
    are as long as the budget allows with one for each entrant and one more, or with at most CLIMB for a
    single entrant.

    Kinds are compared at their own rates, not at the best ones of short heats, because these mislead:
    docs/races.md has the figures.

    All of it costs at most `share` times `steps` steps of the training: the steps of the heats, each at its
    entrant's `step`, the held-out batches at half a step each (more where they are larger than the `batches`,
    see `judging`), what entrants cost to make, and the extra time of the training if the slowest entrant
    wins. These costs stand for seconds. They are not measured, because a race would then depend on the
    machine. A heat that diverges costs the steps that it made. If the budget is too small, the last entrants
    are left out. If it is too small for two heats of the first entrant, there is no heat, and the first
    entrant wins at its own rate.

    The same seed and batches give the same race. Entrants are trained one at a time; afterwards model and
    networks are as they were. `told` is called before each heat and after each step.

    Raises TrainError where there is nothing to race or no heat has a finite loss, DivergedError where the
    held-out loss is not finite before any step, and as a Trainer does.
    """
    check_repeatable(batches)
    if not entrants or not held_out or not 0 < share < math.inf:
        raise TrainError(
            "E-nothing-to-race", entrants=len(entrants), batches=len(held_out), share=f"{share:g}"
        )
    names = [entrant.name for entrant in entrants]
    if len(set(names)) < len(names):
        raise TrainError("E-race-names-collide", got=", ".join(names))
    return _Race(entrants, batches, held_out, loss, options, steps, share * steps, told).run()


@dataclass
class _Race:
    """A race in progress."""

    entrants: Sequence[Entrant]
    batches: Batches
    held_out: Sequence[Any]
    loss: Loss
    options: TrainOptions
    steps: int
    budget: float
    told: Callable[[RaceStep], None] | None

    def __post_init__(self) -> None:
        self.spent = 0.0
        self.start = math.nan
        """The held-out loss before any step, once it was measured."""
        self.heats: list[Heat] = []
        self.judging = judging(self.held_out, first_of(self.batches, self.options.seed), self.options)
        self.expected = 0
        """How many heats there may be at most."""
        self.fixed = family_of(self.options.optimiser).one_rate
        """Whether the optimiser finds the rate itself, so that each entrant has one heat."""

    @property
    def left(self) -> float:
        return self.budget - self.spent

    def run(self) -> Race:
        racing = affordable(self.entrants, self.budget, self.judging, self.steps)
        if not racing or (self.fixed and len(racing) == 1):
            first = self.entrants[0]
            return self._outcome(first.name, first.lr, self.entrants[1:])
        self.budget -= _slower(racing, self.steps)
        self.spent = sum(entrant.cost for entrant in racing) + self.judging
        self.start = self._trained(racing[0], racing[0].lr, 0)[0]
        heats = _shared(racing, int(self.left / (LONG * racing[0].step + self.judging)))
        each = (self.left - len(heats) * self.judging) / sum(heats)
        each = max(SHORTEST, min(self.steps, int(each + 1e-9)))
        self.expected = int(self.left // (each * min(heats) + self.judging))
        climbs = {entrant.name: dict[int, Heat]() for entrant in racing}
        if len(racing) > 1:
            self._climb(racing, climbs, each, _corrected)
        for ahead in [] if self.fixed else self._order(racing, climbs)[:1] or racing[:1]:
            self._climb([ahead], climbs, each, _next)
        best = self._order(racing, climbs)[:1]
        if not best:
            lowest = min(heat.lr for heat in self.heats)
            raise TrainError("E-race-no-finite-loss", key="lr", lowest=f"{lowest:g}")
        left_out = [entrant for entrant in self.entrants if entrant not in racing]
        return self._outcome(best[0].name, _best(climbs[best[0].name]).lr, left_out)

    def _climb(
        self,
        racing: Sequence[Entrant],
        climbs: Mapping[str, dict[int, Heat]],
        steps: int,
        following: Callable[[Mapping[int, float], float], int | None],
    ) -> None:
        """Continue all climbs while the budget allows a heat; `following`, like `_next`, gives the next
        rate."""
        going = list(racing)
        while going:
            for entrant in tuple(going):
                heats = climbs[entrant.name]
                losses = {step: heat.loss for step, heat in heats.items()}
                goal = None if self.fixed and heats else following(losses, self.start)
                if goal is None or self.left - steps * entrant.step - self.judging < -1e-9:
                    going.remove(entrant)
                    continue
                lr = rate_at(entrant.lr, goal)
                heats[goal] = Heat(entrant.name, lr, steps, *self._trained(entrant, lr, steps))
                self.heats.append(heats[goal])

    def _order(self, racing: Sequence[Entrant], climbs: Mapping[str, dict[int, Heat]]) -> list[Entrant]:
        """The entrants with a finite loss, the best first."""
        finite = [
            entrant for entrant in racing if any(math.isfinite(h.loss) for h in climbs[entrant.name].values())
        ]
        return sorted(finite, key=lambda entrant: _best(climbs[entrant.name]).loss)

    def _trained(self, entrant: Entrant, lr: float, steps: int) -> tuple[float, int]:
        """The held-out loss after a complete training of `steps` steps, and the number of parameters.

        Afterwards network and model are as before, also after an error.
        """
        options = self.options
        warmup = options.warmup if options.warmup < 1 else options.warmup / max(self.steps, options.warmup)
        settings = replace(
            options,
            steps=max(1, steps),
            epochs=None,
            lr=lr,
            warmup=min(warmup, 0.99),
            validate_every=None,
            saved="last",
            patience=None,
            rise=None,
            checkpoint_every=None,
            output=None,
            checkpoints=None,
            log=None,
        )
        net = entrant.make()
        before = copies(list(net.parameters()))
        parameters = sum(parameter.numel() for parameter in net.parameters())
        try:
            trainer = Trainer(net, self.loss, settings, validation=self.held_out)
            if not self._stepped(trainer, entrant, lr, steps):
                return math.inf, parameters
            self.spent += self.judging * (steps > 0)
            return trainer.validate(), parameters
        except DivergedError:
            if not steps:
                raise
            return math.inf, parameters
        finally:
            copy_into(list(net.parameters()), before)
            net.restore()

    def _stepped(self, trainer: Trainer, entrant: Entrant, lr: float, steps: int) -> bool:
        """Make the steps; returns whether all losses were finite."""
        feed = Feed(self.batches, self.options.seed, trainer.copies)
        self._tell(entrant, lr, 0, steps)
        for _ in range(steps):
            self.spent += entrant.step
            try:
                trainer.step_of(feed)
            except DivergedError:
                # The trainer has searched for the first bad layer in another pass.
                self.spent += VALIDATED * entrant.step
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


def judging(held_out: Sequence[Any], first: Any, options: TrainOptions) -> float:
    """The cost of judging a heat, in steps, where `first` is a batch of the training."""
    values = sum(times_larger(batch, first) for batch in held_out)
    # Processes read different batches. All take the first one's figure, so their heats are equally long.
    return VALIDATED * processes.of_first(values) / options.accumulation


def affordable(entrants: Sequence[Entrant], budget: float, judged: float, steps: int) -> Sequence[Entrant]:
    """The first entrants, as many as can race within the budget; none where two heats cost too much.

    `judged` is the cost of judging a heat, and `steps` are those of the training.
    """
    for count in range(len(entrants), 0, -1):
        racing = entrants[:count]
        room = budget - judged - sum(entrant.cost for entrant in racing) - _slower(racing, steps)
        heats, least = _shared(racing), LONG if count > 1 else FIRST_OF if len(entrants) > 1 else SHORTEST
        if room >= least * sum(heats) + len(heats) * judged:
            return racing
    return ()


def _shared(racing: Sequence[Entrant], long: int = 0) -> list[float]:
    """The cost of a step in each of the heats that share the budget.

    For a single entrant, `long` is the number of heats of LONG steps that the budget allows.
    """
    steps = [entrant.step for entrant in racing]
    if len(steps) == 1:
        return steps * max(2, min(CLIMB, long))
    return [*steps, max(steps)]


def _best(climb: Mapping[int, Heat]) -> Heat:
    return min(climb.values(), key=lambda heat: heat.loss)


def _slower(racing: Sequence[Entrant], steps: int) -> float:
    """How much longer a training takes with the slowest of these, in steps."""
    return steps * max(0.0, *(entrant.step - 1 for entrant in racing))


def check_repeatable(batches: Batches) -> None:
    """Raise TrainError for an iterator: each heat needs the same batches."""
    if isinstance(batches, Iterator):
        raise TrainError("E-race-batches-once")


def rate_at(lr: float, quarters: int) -> float:
    """The rate `quarters` quarters of a decade above `lr`, with rounded factors."""
    return float(f"{lr * 10.0 ** (quarters // 4) * (1, 1.8, 3, 5.5)[quarters % 4]:.6g}")


def _corrected(losses: Mapping[int, float], start: float) -> int | None:
    """As `_next`, but None as soon as a loss has clearly fallen: that rate is not far off."""
    best = min(losses.values(), default=math.inf)
    return _next(losses, start) if _hardly_fell(best, start) else None


def _next(losses: Mapping[int, float], start: float) -> int | None:
    """Where a climb goes next, in quarters of a decade from its start; None where it ends.

    If all losses are above `start`, the loss before any step, it goes down.
    """
    if not losses:
        return 0
    best = min(losses, key=lambda step: (losses[step] > start, losses[step], step))
    if losses[best] > start:
        return min(losses) - 2
    if _hardly_fell(losses[best], start):
        if best == max(losses):
            return best + 4
        if best + 4 in losses and best + 2 not in losses:
            return best + 2
    lower = max((step for step in losses if step < best), default=None)
    if best < max(losses):
        return best - 2 if lower is None else None
    if lower is None or _hardly_fell(losses[lower], start):
        return best + 1
    power = math.log10((start - losses[best]) / (start - losses[lower])) * 4 / (best - lower)
    return best + 4 if power > LINEAR else None


def _hardly_fell(loss: float, start: float) -> bool:
    return start - loss <= FALLEN * abs(start)
