"""Find the weights that a stack's layers change in a model, and say why some layers find none."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from ..algorithms.base import Parameter
from ..changes.place import Where
from ..changes.timing import Timing, mean
from ..errors import MatchError, located
from ..files.json_text import collector_paused
from ..layers.part import Part
from ..maths.shapes import Rows, Shape, fits, shown
from ..messages import Phrase, phrase
from ..names.blocks import Blocks
from ..names.dialects import Component
from ..names.families import Families, families_of_layers
from ..names.relation import LookedUp, Meaning, Relation
from ..names.targets import Target, Targets, known_shapes
from ..reading.adapter import Adapter
from ..reading.copies import Use, find_copies, uses_of
from ..reading.load import title_of
from ..rules.scene import Outcome, Scene
from .stack import Entry, Stack

OTHER_MODEL = Phrase("R-choose-another-model")
NAMED_AT_MOST = 4
"""How many unmatched layers of an adapter are given a nearest name. Each costs a search, and nobody reads
more."""
OF_AN_EXPERT = (
    "it is for one expert, and either no tensor (experts, rows, columns) has that name, or it has as many "
    "rows as columns, so that their order is not known. Apply it with create_lycoris, or merge it with "
    "merge_to; merge_checkpoint works too if transformers 5 and the model's config.json are there"
)
"""The class of the model tells whether a square weight is (O, I) or (I, O). Its keys and shapes do not."""
STORED_TRANSPOSED = (
    "it is for weights that are stored transposed, as in GPT-2: apply it with create_lycoris, or merge it "
    "with merge_checkpoint or merge_to"
)


Silence = Literal["strength", "rules", "mask"]
"""Why a layer that meets a weight does not change it: the strength for its component of the model is 0, block
rules make it 0, or it has no place in the picture and the mask leaves such layers out."""


class Match(NamedTuple):
    """A layer that meets a weight."""

    layer: str
    target: Target
    """The weight, or its rows, that the layer is applied to."""
    strength: float
    """The strength of the adapter for this component of the model, times the weight of the block rules."""
    parameter: Parameter = "weight"
    """Whether the layer changes the weight or its bias."""
    window: Rows | None = None
    """The rows of the layer for this weight; None for all."""
    timings: tuple[Timing, ...] = ()
    """Factors of the strength over the sampling; () for a constant strength."""
    where: Where | None = None
    """Factors of the strength over places and pictures; None if it is the same everywhere."""

    @property
    def key(self) -> str:
        """The target's key of the changed weight or bias."""
        return self.target.key if self.parameter == "weight" else self.target.bias or ""

    def constant(self) -> Match:
        """The same match at one strength: the mean over the sampling and the pictures, without the mask."""
        factors = self.where.factors if self.where is not None else None
        share = mean(self.timings) * (sum(factors) / len(factors) if factors else 1.0)
        return self._replace(strength=self.strength * share, timings=(), where=None)

    def read(self, adapter: Adapter, *, keep: bool = True) -> Part:
        """Read the layer, or its matched rows, from the file; `keep` is as in `Adapter.layer`."""
        layer = adapter.layer(self.layer, keep=keep)
        rows = self.target.rows
        return Part(layer, rows, self.window, adapter.path, self.layer, parameter=self.parameter)


@dataclass(frozen=True)
class Mismatch:
    """A layer whose name is found in the model, but whose shape does not fit the weight there."""

    layer: str
    target: Target
    made_for: str
    """The weights that the layer could be applied to, in words."""
    expected: Shape
    """The shape of the weight, or of the bias if the bias does not fit."""
    strength: float


@dataclass(frozen=True)
class Unmatched:
    """A layer for which the model has no weight, or that no algorithm reads."""

    layer: str
    reason: str
    nearest: str | None = None
    """The most similar layer name in the model."""


@dataclass(frozen=True)
class EntryResolution:
    """The outcome for each layer of one adapter of a stack."""

    entry: Entry
    matches: tuple[Match, ...]
    mismatches: tuple[Mismatch, ...]
    unmatched: tuple[Unmatched, ...]
    absent: Mapping[Component, tuple[str, ...]]
    """Layers for a component that the target does not have, such as the text encoder, by component."""
    absent_because: str
    """Why a component of the model may be missing, in words for the report."""
    idle_rules: tuple[str, ...]
    """Patterns of rules that match nothing in the model, each with the nearest names."""
    readings: tuple[str, ...] = ()
    """How vectors of block weights were read, and which rules match no layer of the file."""
    silent: Mapping[str, Silence] = field(default_factory=dict[str, Silence])
    """Layers that meet a weight and do not change it, because nobody wants them to, each with the reason."""
    copies: Mapping[str, str] = field(default_factory=dict[str, str])
    """Layers that only repeat the change of another, each with that layer. They are not applied."""
    front: str = ""
    """A prefix in the file that does not belong to the layers' names; "" for none."""
    made_for: Families = ()
    """The model families that the adapter can be for, by its metadata or else its names; () if unknown, or if
    no layer is in `mismatches` or `unmatched`."""
    target_is: Families = ()
    """The families that the model can belong to; () in the same cases."""

    @property
    def elsewhere(self) -> str | None:
        """A remark that the adapter is for another model family; None unless that is known."""
        if not self.made_for or not self.target_is or {*self.made_for} & {*self.target_is}:
            return None
        return phrase("R-made-model", made_for=self.made_for, target_is=self.target_is)

    @property
    def left_out(self) -> int:
        """How many layers could not be applied, for any reason."""
        missing = {left.layer for left in self.unmatched}
        missing |= {bad.layer for bad in self.mismatches if bad.strength != 0.0}
        return len(missing.union(*self.absent.values()))

    @property
    def layers(self) -> int:
        """How many layers the adapter has, readable or not."""
        return len(self.entry.adapter.info) + len(self.entry.adapter.unreadable)

    def count(self) -> int:
        """How many layers change a weight."""
        return len({match.layer for match in self.matches if match.strength != 0.0})

    def masked(self, left: Collection[Match]) -> EntryResolution:
        """The same with these matches at strength 0, because a mask leaves them out."""
        left_out = {(match.layer, match.key) for match in left}
        matches = tuple(
            match._replace(strength=0.0) if (match.layer, match.key) in left_out else match
            for match in self.matches
        )
        live = {match.layer for match in matches if match.strength != 0.0}
        silent: dict[str, Silence] = {layer: "mask" for layer, _ in left_out if layer not in live}
        return replace(self, matches=matches, silent={**silent, **self.silent})


@dataclass(frozen=True)
class Resolution:
    """The outcome for every layer of a stack on one target: the load report as data."""

    entries: tuple[EntryResolution, ...]

    def pairs(self) -> dict[str, list[tuple[Entry, Match]]]:
        """The layers that change each key of the target.

        Their order is independent of the stack's, so a stack in another order gives the same bits. Layers of
        strength 0 are left out, so that they cost nothing and change no bit.
        """
        by_key: dict[str, list[tuple[Entry, Match]]] = {}
        for resolution in self.entries:
            for match in resolution.matches:
                if match.strength != 0.0:
                    by_key.setdefault(match.key, []).append((resolution.entry, match))
        return {key: in_order(pairs) for key, pairs in by_key.items()}

    def masked(self, left: Iterable[tuple[Entry, Match]]) -> Resolution:
        """The same without these layers, which a mask leaves out. They are then in `silent`."""
        silenced: dict[int, list[Match]] = {}
        for entry, match in left:
            silenced.setdefault(id(entry), []).append(match)
        return Resolution(tuple(each.masked(silenced.get(id(each.entry), ())) for each in self.entries))

    def check(self, *, strict: bool = False) -> None:
        """Raise MatchError for a layer that does not fit its weight, and for an adapter that does not match.

        An adapter does not match if none of its layers meets a weight. With `strict` every layer without a
        weight is an error, and so is every unread tensor of the file. Layers for a component that the target
        lacks do not count: an adapter with only such layers is an error only if nothing in the stack matches.
        """
        live = [resolution for resolution in self.entries if not resolution.entry.off]
        # An adapter only for the text encoder is no error if other adapters change the diffusion model.
        any_match = any(resolution.matches for resolution in live)
        for resolution in live:
            _check_entry(resolution, strict, may_be_absent=any_match)


def in_order(pairs: Iterable[tuple[Entry, Match]]) -> list[tuple[Entry, Match]]:
    """The layers that change one weight, in an order that is independent of the stack's."""
    return sorted(pairs, key=lambda pair: (pair[0].adapter.path, pair[1].strength))


@collector_paused()
def resolve(
    stack: Stack,
    keys: Collection[str] | Mapping[str, Shape],
    *,
    absent_because: str = "it is not part of the target",
    oriented: bool = False,
) -> Resolution:
    """Match every layer of a stack with the weights of a target.

    `keys` are the target's keys. If they come with shapes, each layer's shape is checked. `absent_because`
    says why a whole component of the model may be missing. `oriented` says that shapes are (O, I) even for
    weights that the model stores as (I, O); without it layers for such weights are not matched. A layer that
    does not match or fit is only recorded; `Resolution.check` raises the error. Raises MatchError where a
    name fits more than one weight, or two layers of one adapter change the same rows of one weight
    differently.
    """
    Stack.check(stack)
    relation = Relation(known_shapes(keys))
    blocks = Blocks(relation.targets)
    return Resolution(
        tuple(_resolve_entry(entry, relation, blocks, absent_because, oriented=oriented) for entry in stack)
    )


def _resolve_entry(
    entry: Entry, relation: Relation, blocks: Blocks, absent_because: str, *, oriented: bool
) -> EntryResolution:
    matches: list[Match] = []
    uses: list[Use] = []
    mismatches: list[Mismatch] = []
    unmatched = [Unmatched(name, reason) for name, reason in entry.adapter.unreadable.items()]
    absent: dict[Component, list[str]] = {}
    silent: dict[str, Silence] = {}
    asked = 0
    targets, looked_up = relation.targets, LookedUp.of(entry.adapter.names, relation)
    meanings = looked_up.targets(entry.adapter.path)
    weights, timings = _weights(entry, meanings, blocks)
    where = entry.where
    turned = entry.adapter.transposed and not oriented
    for name, info in entry.adapter.info.items():
        places = meanings[name]
        if not places:
            component = info.named.component
            if component is not None and not targets.has_component(info.named):
                absent.setdefault(component, []).append(name)
            else:
                asked += 1
                near = relation.nearest(info.named) if asked <= NAMED_AT_MOST else None
                why = phrase("R-no-layer-name") if info.named.expert is None else OF_AN_EXPERT
                unmatched.append(Unmatched(name, why, near))
            continue
        if turned and len(info.shape) == 2:
            unmatched.append(Unmatched(name, STORED_TRANSPOSED))
            continue
        # The layer's name takes precedence: bare keys of a model do not show their component.
        component = info.named.component or places[0].component
        strength = entry.strength_of(component)
        strength *= weights.of.get(name, 1.0)
        expected = targets.shape_of(*places)
        # An empty shape means unknown, and fits every layer.
        if expected and info.shape and not info.fits(expected):
            mismatches.append(Mismatch(name, places[0], info.made_for, expected, strength))
            continue
        # () if the model's layer has no bias (that is no mismatch), or if its shape is unknown.
        beside = targets.bias_of(*places) if info.bias else ()
        if info.bias and beside and not fits(info.bias, beside):
            mismatches.append(Mismatch(name, places[0], shown(info.bias), beside, strength))
            continue
        own = uses_of(info, places, targets)
        uses += own
        # Text encoders run once, before the sampling, and for all places and pictures.
        over, held = (), None
        if component == "te":
            strength *= entry.mask.at_no_place if entry.mask else 1.0
        else:
            over, held = timings.of.get(name, ()), where
        if strength == 0.0 and own:
            off = entry.strength_of(component) == 0.0
            silent[name] = "strength" if off else "rules" if weights.of.get(name) == 0.0 else "mask"
        matches += [Match(name, use.target, strength, use.parameter, use.window, over, held) for use in own]
        needs_bias = info.bias is not None and not info.algorithm.table.bias_may_be_absent
        if needs_bias and not any(use.parameter == "bias" for use in own):
            unmatched.append(Unmatched(name, phrase("R-changes-bias-model-s-layer")))
    failed = bool(unmatched or mismatches)
    made_for, target_is = (entry.adapter.families, families_of_model(targets)) if failed else ((), ())
    copies = find_copies(entry.adapter, uses)
    if copies:
        matches = [match for match in matches if match.layer not in copies]
        silent = {name: why for name, why in silent.items() if name not in copies}
    resolution = EntryResolution(
        entry=entry,
        matches=tuple(matches),
        mismatches=tuple(mismatches),
        unmatched=tuple(unmatched),
        absent={component: tuple(names) for component, names in absent.items()},
        absent_because=absent_because,
        idle_rules=(*weights.idle, *timings.idle),
        readings=(*weights.notes, *timings.notes),
        silent=silent,
        copies=copies,
        front=looked_up.front,
        made_for=made_for,
        target_is=target_is,
    )
    if resolution.elsewhere:
        # A similar name would only mislead.
        return replace(resolution, unmatched=tuple(replace(left, nearest=None) for left in unmatched))
    return resolution


def _weights(
    entry: Entry, meanings: Mapping[str, Meaning], blocks: Blocks
) -> tuple[Outcome[float], Outcome[tuple[Timing, ...]]]:
    """The factors that the block rules and the schedule of an adapter give its layers."""
    weights, timings = Outcome[float]({}), Outcome[tuple[Timing, ...]]({})
    if not entry.rules and not entry.schedule:
        return weights, timings
    layers = {name: blocks.of(places[0], name) for name, places in meanings.items() if places}
    if not layers:
        # No remarks on rules: the user must learn that the adapter is for another model.
        return weights, timings
    scene = Scene(blocks, layers)
    with located(file=entry.adapter.path):
        return (
            entry.rules.on(scene) if entry.rules else weights,
            entry.schedule.on(scene) if entry.schedule else timings,
        )


def families_of_model(targets: Targets) -> Families:
    """The model families that the target can belong to; () for none known."""
    return families_of_layers(
        (target.path, targets.shape_of(target)) for target in targets.all if target.component != "te"
    )


def _check_entry(resolution: EntryResolution, strict: bool, *, may_be_absent: bool) -> None:
    file = resolution.entry.adapter.path
    # With a rule of weight 0 users leave out a layer that does not fit.
    live = [mismatch for mismatch in resolution.mismatches if mismatch.strength != 0.0]
    if live:
        first = live[0]
        if resolution.elsewhere:
            raise MatchError(
                "E-layer-for-another-component",
                file=file,
                key=first.layer,
                name=title_of(resolution.entry.name),
                elsewhere=resolution.elsewhere,
                shape=list(first.expected),
                target=first.target.key,
                got=first.made_for,
                hint=OTHER_MODEL,
            )
        more = f" {phrase('R-and-2', count=len(live) - 1)}" if len(live) > 1 else ""
        raise MatchError(
            "E-layer-misfits-weight",
            file=file,
            key=first.layer,
            target=first.target.key,
            more=more,
            name=first.target.name,
            got=first.made_for,
            expected=str(list(first.expected)),
        )
    if not resolution.matches and not (may_be_absent and _all_absent(resolution)):
        raise _nothing_matches(resolution)
    if strict and resolution.unmatched:
        first = resolution.unmatched[0]
        raise MatchError(
            "E-layers-unmatched-strict",
            file=file,
            key=first.layer,
            count=len(resolution.unmatched),
            layers=resolution.layers,
            got=first.reason,
            expected=phrase("R-layer-such", nearest=first.nearest)
            if first.nearest
            else phrase("R-every-layer-match"),
        )
    if strict and (left := resolution.entry.adapter.left_out):
        raise MatchError("E-tensors-unread-strict", file=file, key=left[0], count=len(left))


def _all_absent(resolution: EntryResolution) -> bool:
    return bool(resolution.absent) and not resolution.unmatched and not resolution.mismatches


def _nothing_matches(resolution: EntryResolution) -> MatchError:
    file = resolution.entry.adapter.path
    if _all_absent(resolution):
        components = " and ".join(COMPONENT_NAMES[component] for component in resolution.absent)
        return MatchError(
            "E-component-absent", file=file, components=components, absent_because=resolution.absent_because
        )
    first = resolution.unmatched[0] if resolution.unmatched else None
    if resolution.elsewhere:
        return MatchError(
            "E-adapter-for-another-component",
            file=file,
            key=first.layer if first else None,
            name=title_of(resolution.entry.name),
            elsewhere=resolution.elsewhere,
            layers=resolution.layers,
            hint=OTHER_MODEL,
        )
    return MatchError(
        "E-nothing-matches",
        file=file,
        key=first.layer if first else None,
        got=phrase("R-layers", layers=resolution.layers) + (f"; {first.reason}" if first else ""),
        expected=phrase("R-names-such", nearest=first.nearest)
        if first and first.nearest
        else phrase("R-matching-layer"),
    )


COMPONENT_NAMES: dict[Component, str] = {"unet": "diffusion model", "te": "text encoder"}
"""The components of a model, in words for messages and reports."""
