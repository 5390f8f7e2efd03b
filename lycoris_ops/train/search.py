"""Find a training's learning rate and kind by a race before it. Later trainings reuse the outcome."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import processes
from ..errors import FileFormatError, LycorisError, TrainError, UnsuitedError
from ..files.writing import new_files
from ..maths.chance import Chance
from ..maths.shapes import Shape, factorization, flat_shape
from ..messages import phrase
from ..ranks.choice import plan_ranks
from ..ranks.gradients import Loss
from ..ranks.plan import Plan
from ..ranks.probe import probe
from ..ranks.sizes import Budget
from .feed import Batches, batches_of, first_of, moved, no_validation, tensors_of, times_larger
from .identity import identity_of
from .member import Member, completed, layer_seed, make_layer
from .network import LycorisNetwork
from .optimisers import family_of
from .options import AUTOCAST, TrainOptions
from .race import Entrant, Race, RaceStep, affordable, check_repeatable, judging, race
from .rates import rate_of, usual_rate
from .settings import LayerSettings
from .sketches import Sketch, data_changes, sketches
from .trainer import move_to_train

ENDING = "-race.json"
HELD = 4
"""How many held-out batches judge a heat. If they are larger than the training's, fewer do, with about as
many values in all."""
SEEN = 64
"""Those batches are evenly spaced among the first `SEEN` validation batches."""
PROBED, PROBE_COST = 8, 1.6
"""How many batches the plan's probe sees, and the cost of each in steps of one batch (docs/quality.md)."""
PLANNED_STEP, LOKR_STEP = 1.06, 1.25
"""How long a step of a planned LoRA and of LoKr takes, in steps of LoRA. Hardly any is longer in
docs/quality.md."""
ALIKE = 4
"""A kept race serves trainings that are up to this many times longer or shorter than its own. On the tasks of
docs/quality.md a kind's best rate is on average the same after 120 and after 480 steps."""
FACTORS = range(2, 129)
"""The factors that LoKr may have."""
WHOLE = 2**20
"""A rank at which LoKr keeps its second factor whole."""
DECIDING = (
    *("optimiser", "optimiser_options", "lora_plus", "weight_decay", "schedule", "warmup", "restarts"),
    *("accumulation", "clip_norm", "max_weight_norm", "ema", "autocast", "settings"),
)
"""A kept race serves a training only if these options, the data and the network are the same."""
NOT_DECIDING = ("steps", "seed", "learning_rate", "text_learning_rate", "search", "search_share")
"""The entries of `TrainOptions.settings` that may differ."""


@dataclass(frozen=True)
class Searched:
    """The outcome of a search."""

    network: LycorisNetwork
    """The given network, or the winner of the race, for the same modules."""
    options: TrainOptions
    """The given options, with the rate that was found."""
    race: Race | None = None
    file: Path | None = None
    """The file of the kept race that was used; None if a race was run now."""

    def __str__(self) -> str:
        if self.race is None:
            return ""
        before = f" {phrase('R-from-not-raced-again', name=self.file.name)}" if self.file else ""
        return phrase("R-searched", verdict=self.race.verdict(), before=before)


@dataclass(frozen=True)
class _Given:
    """What entrants are made from."""

    net: LycorisNetwork
    batches: Batches
    loss: Loss
    options: TrainOptions
    plan: str | None = None
    """A kept plan in JSON."""
    started: bool = True
    """Whether a plan is to start from the gradient. A resumed training has its weights already."""

    def asked(self) -> LycorisNetwork:
        return self.net

    @property
    def most(self) -> int:
        """The most parameters that an entrant may have."""
        return sum(parameter.numel() for parameter in self.net.parameters())

    @property
    def rest(self) -> int:
        """The most parameters of an entrant, without those that every entrant has."""
        return self.most - _others(self.net)

    @property
    def kinds(self) -> set[str]:
        return {member.layer.algorithm for member in self.net.members.values()}

    @property
    def dora(self) -> bool:
        return any(member.settings.dora for member in self.net.members.values())


@dataclass(frozen=True)
class _Kind:
    algorithm: str
    make: Callable[[_Given], Callable[[], LycorisNetwork] | str | None]
    """Returns a function that makes the network, with at most as many parameters as the given one; the reason
    why there is none; or None where the given network is the same."""
    cost: float = 0.0
    """The cost of making the network, in steps of one batch."""
    step: float = 1.0
    """The cost of one of its steps, where a step of LoRA costs 1. A step of the given network counts as 1,
    whatever its kind."""


@dataclass(eq=False)
class _Planned:
    """Makes a LoRA network with planned ranks, once."""

    given: _Given
    most: int

    def __post_init__(self) -> None:
        self.plan: Plan | None = None
        self._network: LycorisNetwork | None = None

    def __call__(self) -> LycorisNetwork:
        if self._network is None:
            self.plan = self._planned()
            self._network = self._made(self.plan)
        return self._network

    def _planned(self) -> Plan:
        inputs = self.given
        if inputs.plan is not None and not inputs.started:
            return Plan.of_json(inputs.plan)
        net, options = inputs.net, inputs.options
        device = next(iter(net.parameters())).device
        dtype = AUTOCAST.get(options.autocast or "")

        def loss(module: Any, batch: Any) -> Tensor:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                return inputs.loss(module, moved(batch, options.device))

        with Chance(options.seed, "data", 0).drawn():
            seen = list(islice(batches_of(inputs.batches, 0), PROBED))
        probed = probe(net.module, seen, loss, include=_plannable(net), algorithms="lora", seed=options.seed)
        if inputs.plan is not None:
            return Plan.of_json(inputs.plan, probe=probed)
        return plan_ranks(probed, size=Budget(parameters=self.most), algorithms="lora")

    def _made(self, plan: Plan) -> LycorisNetwork:
        net, rows = self.given.net, {row.path: row for row in plan}
        members: dict[str, Member] = {}
        for path, member in net.members.items():
            if path in rows:
                row = rows[path]
                settings = replace(_plain(member.settings), rank=row.rank or 1, alpha=row.alpha)
                layer = completed(
                    row.start(plan.probe, seed=layer_seed(net.seed, path)), member.site, settings
                )
                members[path] = Member(member.site, layer, settings)
            elif not _is_factored(member):
                members[path] = _remade(member, member.settings, net.seed)
        return _like(net, members)


def _planned(inputs: _Given) -> Callable[[], LycorisNetwork] | None:
    costs = [sum(flat_shape(shape)) for shape in _shapes(inputs.net)]
    rest = inputs.rest
    if not costs or min(costs) > rest or (inputs.net.origin == "plan" and inputs.kinds == {"lora"}):
        return None
    return _Planned(inputs, rest)


def _uniform(inputs: _Given) -> Callable[[], LycorisNetwork] | None:
    net = inputs.net
    rank = inputs.rest // max(1, sum(sum(flat_shape(shape)) for shape in _shapes(net)))
    if rank < 1 or (net.origin == "fresh" and inputs.kinds == {"lora"} and not inputs.dora):
        return None
    return lambda: _all_of(net, "lora", rank=rank)


def _whole_lokr(inputs: _Given) -> Callable[[], LycorisNetwork] | str | None:
    net, rest = inputs.net, inputs.rest
    sizes = {factor: sum(_lokr_numbers(shape, factor) for shape in _shapes(net)) for factor in FACTORS}
    fitting = [factor for factor, size in sizes.items() if size <= rest]
    if not _shapes(net):
        return None
    if not fitting:
        return phrase("R-needs-parameters-budget", values=min(sizes.values()), rest=rest)
    factor = max(fitting, key=lambda factor: sizes[factor])

    def make() -> LycorisNetwork:
        return _all_of(net, "lokr", rank=WHOLE, factor=factor)

    # Leave it out, rather than find out at the end of a training that it cannot be written.
    try:
        make().check_dialect(inputs.options.dialect)
    except LycorisError as error:
        return error.problem
    return make


KINDS: Mapping[str, _Kind] = {
    "planned lora": _Kind("lora", _planned, PROBED * PROBE_COST, PLANNED_STEP),
    "whole lokr": _Kind("lokr", _whole_lokr, step=LOKR_STEP),
    "uniform lora": _Kind("lora", _uniform),
}
"""The rivals of the given network. With a small budget only the first ones race. On the tasks of
docs/quality.md one of the first two is ahead of LoRA with one rank and equally many parameters."""
SMALL = 2
"""With fewer parameters than a LoRA of this rank, LoKr races first: there it is ahead of plans."""


# A host may call from within inference mode, whose tensors cannot be trained.
@torch.inference_mode(mode=False)
def search_network(
    net: LycorisNetwork,
    batches: Batches,
    loss: Loss,
    options: TrainOptions,
    *,
    steps: int,
    validation: Batches | None = None,
    resumed: bool = False,
    told: Callable[[RaceStep], None] | None = None,
) -> Searched:
    """Find the best rate to train a network with, and with `options.search` "all" the best kind too.

    With "rate" only the rate is searched, starting from `options.lr` or a usual rate. With "all" the network
    races against others for the same modules with at most as many parameters: LoRA with planned ranks that
    starts from the gradient, LoKr with two whole factors (first if the given network is small), and LoRA of
    one rank everywhere (see `race`).

    The search may cost as much as `options.search_share` times `steps` steps of the training. A training of
    LoKr takes longer, and so does one of a planned LoRA. The extra time of the slowest kind that races counts
    as a cost of the search. If the share is too little for all networks, only the first of them race, maybe
    one alone at several rates; if it is too little for heats that compare kinds, the given network races
    alone; if it is too little for that, everything stays as it was given.

    Heats are judged on some of the `validation` batches. Without them they are judged on the first batches
    of the first epoch: at most four, and at most a quarter of the epoch. Heats skip as many at the start of
    each epoch; the training itself skips none. If an epoch has fewer than four batches, heats are judged on
    the batches they were trained on, with other noise.

    The outcome is written to `options.race_file`. A race that was kept in the same folder is not run again if
    it was for the same frozen weights, layers, options and data (`options.data`, or the first tensors of the
    batches), at least as large a share, and a training at most four times longer or shorter. A resumed
    training (`resumed`) takes its own race or none.

    Afterwards all networks have the weights that they started with, and nothing is applied to the model.

    Raises TrainError for "all" where the network's layers are from a file, for "rate" with an optimiser that
    finds the rate itself, for a sharded network, and as `race` does; FileFormatError where the file for the
    outcome exists but holds no race; WriteError where it cannot be written.
    """
    if options.search == "off" or not options.search_share:
        return Searched(net, options)
    if options.search == "all" and net.origin == "file":
        raise TrainError("E-search-kind-from-file", key="search")
    if options.search == "rate" and family_of(options.optimiser).one_rate:
        raise TrainError("E-search-rate-not-needed", key="search", optimiser=options.optimiser)
    if processes.copies_of(net.module, net, options.mesh).sharded:
        raise TrainError("E-race-sharded", key="search", got=options.search)
    check_repeatable(batches)
    move_to_train(net, options.device)
    net.restore()
    first = first_of(batches, options.seed)
    held, rest = _held_out(validation, batches, first, options.seed)
    about = _about(net, options, first, held)
    inputs = _Given(net, rest, loss, options)
    entrants = _entrants(inputs)
    names = {entrant.name for entrant in entrants}
    serving = (
        (file, kept)
        for file, kept in _kept(options)
        if kept.name in names
        and (file == options.race_file if resumed else _serves(kept, about, options, steps))
    )
    # Processes on machines without a common disk find different files, and would wait for each other.
    raced = processes.of_first(next(serving, None))
    if raced is not None:
        file, kept = raced
        inputs = replace(inputs, plan=kept.plan, started=not resumed)
        entrant = next(entrant for entrant in _entrants(inputs) if entrant.name == kept.name)
        if file != options.race_file:
            _write(options, kept)
        return Searched(entrant.make(), replace(options, lr=kept.lr), kept, file)
    if resumed:
        return Searched(net, options)
    judged = judging(held, first, options)
    racing = entrants
    if not affordable(entrants, steps * options.search_share, judged, steps):
        racing = [entrant for entrant in entrants if entrant.make == inputs.asked]
    outcome = race(racing, rest, held, loss, options, steps=steps, share=options.search_share, told=told)
    if racing is not entrants:
        outcome = replace(
            outcome, left_out=tuple(entrant.name for entrant in entrants if entrant not in racing)
        )
    if options.search == "all":
        reasons = ((name, kind.make(inputs)) for name, kind in KINDS.items())
        unsuited = tuple(f"{name} ({why})" for name, why in reasons if isinstance(why, str))
        outcome = replace(outcome, unsuited=unsuited)
    if not outcome.heats:
        return Searched(net, options, outcome)
    winner = next(entrant for entrant in entrants if entrant.name == outcome.name)
    network = winner.make()
    plan = winner.make.plan if isinstance(winner.make, _Planned) else None
    outcome = replace(outcome, about=about, plan=plan.json() if plan else None)
    _write(options, outcome)
    return Searched(network, replace(options, lr=outcome.lr), outcome)


def _entrants(inputs: _Given) -> list[Entrant]:
    net, options = inputs.net, inputs.options
    family = family_of(options.optimiser)
    kinds = sorted(inputs.kinds)
    lr = options.lr or usual_rate(net, family, options.lora_plus)
    shapes = _shapes(net)
    rank = max(1.0, inputs.most / max(1, sum(sum(flat_shape(shape)) for shape in shapes)))
    # Kinds that start from a plan's gradient need LoRA's rate.
    own = rate_of(kinds[0] if net.origin == "fresh" else "lora", shapes, rank)
    asked = Entrant(f"{'dora ' * inputs.dora}{' and '.join(kinds)} as asked", inputs.asked, lr)
    entrants: list[Entrant] = []
    order = sorted(KINDS, key=lambda name: rank < SMALL and KINDS[name].algorithm == "lora")
    for name in order if options.search == "all" else ():
        kind = KINDS[name]
        make = kind.make(inputs)
        if callable(make):
            rate = lr if family.one_rate else lr * rate_of(kind.algorithm, shapes, rank) / own
            entrants.append(Entrant(name, make, rate, kind.cost / options.accumulation, kind.step))
    # A given network from a plan comes first. Any other comes after the best two.
    entrants.insert(0 if net.origin == "plan" else 2, asked)
    return entrants


# Networks for the modules of another one.


def _plain(settings: LayerSettings) -> LayerSettings:
    """Settings for LoRA, with the given values of all options that mean the same for every kind."""
    kept = ("bias", "input_dropout", "rank_dropout", "module_dropout", "lr", "form")
    return LayerSettings(**{name: getattr(settings, name) for name in kept})


def _all_of(net: LycorisNetwork, algorithm: str, **options: Any) -> LycorisNetwork:
    members: dict[str, Member] = {}
    for path, member in net.members.items():
        settings = member.settings
        if _is_factored(member):
            settings = replace(_plain(settings), algorithm=algorithm, **options)
        members[path] = _remade(member, settings, net.seed)
    return _like(net, members)


def _remade(member: Member, settings: LayerSettings, seed: int) -> Member:
    try:
        layer, _ = make_layer(member.site, settings, seed)
    except UnsuitedError:
        # Such as a weight whose sizes LoKr cannot divide: it keeps the kind that was asked for.
        settings = member.settings
        layer, _ = make_layer(member.site, settings, seed)
    return Member(member.site, layer, settings)


def _like(net: LycorisNetwork, members: Mapping[str, Member]) -> LycorisNetwork:
    network = LycorisNetwork(net.module, members, seed=net.seed, prefix=net.prefix, notes=net.notes)
    network.set_multiplier(net.multiplier)
    return network.to(next(iter(net.parameters())).device)


def _is_factored(member: Member) -> bool:
    """Whether all algorithms can adapt the site, and all of it is trained, not only some rows."""
    return member.site.kind in ("linear", "conv") and not member.settings.tokens


def _plannable(net: LycorisNetwork) -> tuple[str, ...]:
    return tuple(path for path, member in net.members.items() if _is_factored(member))


def _shapes(net: LycorisNetwork) -> list[Shape]:
    return [net.members[path].site.shape for path in _plannable(net)]


def _others(net: LycorisNetwork) -> int:
    """The number of parameters that every entrant has: in layers of norms and embeddings, and in biases."""
    count = 0
    for member in net.members.values():
        if not _is_factored(member):
            count += sum(parameter.numel() for parameter in member.parameters())
        elif member.settings.bias and member.site.has_bias:
            count += member.site.shape[0]
    return count


def _lokr_numbers(shape: Shape, factor: int) -> int:
    """The number of parameters of a LoKr with two whole factors."""
    rows, columns = factorization(shape[0], factor), factorization(shape[1], factor)
    return rows[0] * columns[0] + rows[1] * columns[1] * math.prod(shape[2:])


# Batches that judge.


def _held_out(
    validation: Batches | None, batches: Batches, first: Any, seed: int
) -> tuple[list[Any], Batches]:
    """The batches that judge heats, and those that heats are trained on."""
    if validation is not None:
        with Chance(seed, "validation").drawn():
            seen = list(islice(batches_of(validation, 0), SEEN))
        if not seen:
            raise no_validation()
        values = processes.of_first(sum(times_larger(batch, first) for batch in seen))
        count = max(1, int(HELD * len(seen) / max(1.0, values)))
        return seen[:: -(-len(seen) // count) or 1], batches
    with Chance(seed, "data", 0).drawn():
        held = list(islice(batches_of(batches, 0), 4 * HELD))
    count = len(held) // 4
    if not count:
        return held, batches

    def rest(epoch: int) -> Iterable[Any]:
        return islice(batches_of(batches, epoch), count, None)

    return held[:count], rest


# The race of an earlier training.


def _about(net: LycorisNetwork, options: TrainOptions, first: Any, held: Sequence[Any]) -> dict[str, Any]:
    net.apply_to()
    identity = identity_of(net)
    net.restore()
    own = {name: getattr(options, name) for name in DECIDING}
    own["settings"] = {name: value for name, value in options.settings.items() if name not in NOT_DECIDING}
    data: Mapping[str, Sequence[Sketch]] = options.data
    if not data:
        data = {
            "batches": sketches([tensors_of(first)]),
            "held out": sketches(map(tensors_of, held)),
        }
    return {
        "search": options.search,
        "share": options.search_share,
        "network": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        "options": {name: repr(value) for name, value in own.items()},
        "data": {name: [list(row) for row in rows] for name, rows in data.items()},
    }


def _kept(options: TrainOptions) -> list[tuple[Path, Race]]:
    """The races in the folder of `race_file`: first the one in that file, then the others, newest first.

    Raises FileFormatError where that file holds no race: the outcome would replace it.
    """
    own, others = options.race_file, list[tuple[float, Path, Race]]()
    if own is None:
        return []
    first = [(own, _read(own))] if own.is_file() else []
    for file in own.parent.glob(f"*{ENDING}"):
        # A file of that name may be another program's, or be gone by now.
        with suppress(FileFormatError, OSError):
            if file != own:
                others.append((file.stat().st_mtime, file, _read(file)))
    others.sort(key=lambda each: each[0], reverse=True)
    return first + [(file, kept) for _, file, kept in others]


def _read(file: Path) -> Race:
    return Race.of_json(file.read_text(encoding="utf-8", errors="replace"), str(file))


def _serves(kept: Race, about: Mapping[str, Any], options: TrainOptions, steps: int) -> bool:
    """Whether a kept race is valid for this training too."""
    theirs = kept.about
    if any(theirs.get(name) != about[name] for name in ("search", "network", "options")):
        return False
    if theirs.get("share", 0) < options.search_share or not steps / ALIKE <= kept.steps <= steps * ALIKE:
        return False
    known = [row for rows in about["data"].values() for row in rows if row]
    return bool(known) and not data_changes(theirs.get("data", {}), about["data"])


def _write(options: TrainOptions, raced: Race) -> None:
    path = options.race_file
    if path is not None and processes.rank() == 0:
        text = raced.json().encode()
        with new_files([path], len(text), make_folder=True) as (file,):
            file.write(text)
