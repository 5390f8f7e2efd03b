"""The names of layers in adapter files, and the rows of one model's weights that each of them means.

From a name to rows, `Relation` knows three tiers of names: the model's own paths, other tools' names, and the
usual names of fused and split layers. The first of these that has the name decides. From rows to names,
`Written` has those that a dialect writes. Both are made of the same tables, `layouts.Layers`.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice, product

from ..errors import MatchError
from ..maths.shapes import Rows, Shape
from ..messages import phrase
from .dialects import Component, write_of
from .dialects.pipelines import UNET, Components
from .layer_name import LayerName
from .layouts import LONG, Layers, Names
from .targets import IN_PROJ, Span, Target, Targets, is_of_encoder, shared_fronts

RIVALS = 32
"""How many meanings of one name are kept. Even two are an error, unless they are in different components of
the model, and no model has this many components."""
SHORTLIST = 64
"""How many names are compared letter by letter with a missing name: those with the most similar words."""
COMPARED = 160
"""Characters of the longest name that is compared letter by letter. The longest real one has about 100."""
SIMILAR = 0.85
"""An error suggests names whose similarity, difflib's ratio, is at least this."""
SEARCHED = 20_000
"""How many names are searched for a similar one. A model has a few thousand, with those of other tools."""
NAMED = 3
"""How many rivals an error names."""
ENCODER_ROOTS = ("text_model.", "model.", "bert.")
"""Beginnings of a text encoder's paths that an adapter file may lack.

Not all classes of transformers have them: a CLIP text model of transformers 5 has no `text_model`.
"""

Meaning = tuple[Target, ...]
"""What a name means: one target, or several whose stacked rows are the layer's; () for nothing."""
Candidates = tuple[Meaning, ...]
"""All that a name may mean: mostly one, none, or several rivals."""
_Index = dict[str, list[Meaning]]


@dataclass(frozen=True)
class LookedUp:
    """The names of an adapter's layers, and what each of them means in a model: looked up once."""

    named: Mapping[str, LayerName]
    """The names by their texts."""
    relation: Relation | None = None
    """The model's names; None where no model is given."""
    meanings: Mapping[str, Candidates] = field(default_factory=dict[str, Candidates])
    """What each name may mean. Empty without a model."""
    front: str = ""
    """The text before the names that is no part of them, see `shared_fronts`; "" for none."""

    @classmethod
    def of(cls, names: Iterable[LayerName], relation: Relation | None) -> LookedUp:
        named = {name.text: name for name in names}
        return cls(named) if relation is None else cls(named, relation, *relation.look_up(named.values()))

    def targets(self, file: str, layers: Iterable[str] | None = None) -> dict[str, Meaning]:
        """The one meaning of each name, () where there is none. Raises MatchError for rivals.

        file: the adapter's file, for the error. layers: only these, all where None.
        """
        targets_of: dict[str, Meaning] = {}
        for layer in self.meanings if layers is None else layers:
            rivals = self.meanings.get(layer, ())
            if len(rivals) > 1:
                named = ["+".join(target.key for target in targets) for targets in rivals[:NAMED]]
                raise MatchError(
                    "E-name-ambiguous",
                    file=file,
                    key=layer,
                    got=" and ".join(named) + (f" {phrase('R-more-4')}" if len(rivals) > NAMED else ""),
                )
            targets_of[layer] = rivals[0] if rivals else ()
        return targets_of

    def shape_of(self, layer: str) -> Shape:
        """The shape of the weight that a layer changes; () where it is not known."""
        candidates = self.meanings.get(layer)
        return self.relation.targets.shape_of(*candidates[0]) if self.relation and candidates else ()

    def may_have_bias(self, layer: str) -> bool:
        """Whether the weight that a layer changes may have a bias beside it; True where it is not known."""
        return not self.shape_of(layer) or any(target.bias for target in chain(*self.meanings[layer]))


class Relation:
    """Every name that an adapter can have for the layers of one model or checkpoint, and what it means.

    shapes: the keys of the model with their shapes, see `Targets`.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.targets = Targets(shapes)
        self._own: _Index = {}
        for target in self.targets.all:
            _enter(self._own, target.path, (target,))
            if target.encoder:
                _enter(self._own, target.name, (target,))
        self._written: dict[tuple[str, bool], Written] = {}

    @cached_property
    def _elsewhere(self) -> _Index:
        """Other tools' names. Built on the first look-up of a name that is not the model's own."""
        index: _Index = {}
        for target in self.targets.all:
            if target.encoder:
                _enter(index, f"transformer.{target.path}", (target,))
            if target.path.endswith(IN_PROJ):
                # PEFT adapts it under the name of the attention.
                _enter(index, target.path.removesuffix(IN_PROJ), (target,))
            for root in ENCODER_ROOTS:
                if target.component == "te" and target.path.startswith(root):
                    _enter(index, target.path.removeprefix(root), (target,))
        if layers := self.targets.layers.get(UNET):
            self._enter_all(index, UNET, layers.diffusers())
            self._enter_all(index, UNET, layers.elsewhere())
        return index

    @cached_property
    def _usual(self) -> _Index:
        """Usual names of fused and split layers. Built on the first look-up of a name that no tool has."""
        index: _Index = {}
        for component, layers in self.targets.layers.items():
            self._enter_all(index, component, layers.usual())
        return index

    def _enter_all(self, index: _Index, component: str, names: Names) -> None:
        members = self.targets.by_component[component]
        for name, targets_named in names.items():
            for targets in islice(
                product(*(members[target_named.path] for target_named in targets_named)), RIVALS
            ):
                taken = (
                    target.taking(named.rows) for target, named in zip(targets, targets_named, strict=True)
                )
                _enter(index, name, tuple(taken))

    def find(self, layer: str) -> Candidates:
        """What a layer's name in an adapter file means, see `meanings`."""
        return self.meanings(LayerName.of(layer))

    def meanings(self, name: LayerName) -> Candidates:
        """What a layer's name means: one candidate, none, or several rivals."""
        candidates = self._indexed(name)
        # A model's own path can begin like a prefix: Stable Audio's `transformer.layers`.
        return candidates if candidates or not name.prefix.text else self._indexed(LayerName.bare(name.text))

    def _indexed(self, name: LayerName) -> Candidates:
        path = _normal(name.path)
        # By attribute names, so that a later index is built only where the earlier ones have nothing.
        for tier in ("_own", "_elsewhere", "_usual") if len(path) <= LONG else ("_own",):
            index: _Index = getattr(self, tier)
            candidates = index.get(path)
            if candidates is None:
                continue
            matching = [
                targets
                for targets in candidates
                if name.component is None or targets[0].component in (name.component, None)
            ]
            if name.encoder is not None:
                matching = self._first(name.encoder, matching)
            if matching:
                return tuple(matching)
        return ()

    def _first(self, number: int, candidates: list[Meaning]) -> list[Meaning]:
        """The candidates in the text encoder that a number means, among all that have the layer."""
        ranks = [self.targets.rank(number, targets[0].encoder) for targets in candidates]
        best = min((rank for rank in ranks if rank is not None), default=-1)
        return [targets for targets, rank in zip(candidates, ranks, strict=True) if rank == best]

    def look_up(self, names: Iterable[LayerName]) -> tuple[dict[str, Candidates], str]:
        """What each name of a file's layers means, and the front that the names share, see `_front`.

        A name that the model does not have is looked up without the front.
        """
        candidates = {name: self.meanings(name) for name in names}
        front, behind = self._front(candidates)
        meant = {
            name.text: candidates or (behind[name.text] if name.text in behind else self._behind(front, name))
            for name, candidates in candidates.items()
        }
        return meant, front

    def _front(self, candidates: Mapping[LayerName, Candidates]) -> tuple[str, Mapping[str, Candidates]]:
        """The front of the names of a file's layers, which is no part of them, and their meanings without it.

        candidates: what each whole name means, see `meanings`. Without a front, ("", {}).

        Tools put anything in front of a path: `pipe.dit.`, `model.`, `module.`, `_orig_mod.`,
        `Hunyuan_video_I2V_lora_`. A front is whole words. Fewer than half of the file's layers have a meaning
        with it, and more than half have exactly one without it. Where two fronts give a layer two meanings,
        neither counts. The component of the model that a name states still holds: a text encoder's layer
        never means a layer of a diffusion model.

        Layers of a component of the model that is not here do not count.
        """
        here = [
            name
            for name in candidates
            if candidates[name] or (len(name.text) <= LONG and self.targets.has_component(name))
        ]
        missing = [name for name in here if not candidates[name]]
        if 2 * len(missing) <= len(here):
            return "", {}
        best, meanings = "", dict[str, Candidates]()
        for front in shared_fronts([name.text for name in here]):
            behind = self._all_behind(front, missing, len(here) // 2)
            both = (
                (candidates, meanings[layer]) for layer, candidates in behind.items() if layer in meanings
            )
            if any(len(first) == len(other) == 1 and first != other for first, other in both):
                return "", {}
            if behind and not best:
                best, meanings = front, behind
        return best, meanings

    def _all_behind(self, front: str, names: Sequence[LayerName], more_than: int) -> dict[str, Candidates]:
        """The meanings of layers' names without a front; {} unless more than `more_than` have exactly one."""
        meanings: dict[str, Candidates] = {}
        count = 0
        for left, name in zip(range(len(names), 0, -1), names, strict=True):
            # Too few names are left to find enough. Without this, a file that matches nothing would cost a
            # search for each layer and front.
            if count + left <= more_than:
                return {}
            meanings[name.text] = self._behind(front, name)
            count += len(meanings[name.text]) == 1
        return meanings if count > more_than else {}

    def _behind(self, front: str, name: LayerName) -> Candidates:
        """What a layer's name means without a front, see `meanings`; () if it does not begin with that."""
        if not front or not name.text.startswith(front):
            return ()
        component: Component | None = "te" if is_of_encoder(front) else name.component
        candidates = self.find(name.text[len(front) :])
        return tuple(targets for targets in candidates if component in (None, targets[0].component))

    def nearest(self, name: LayerName) -> str | None:
        """The layer here whose name is most similar to one that was not found; None where none is similar."""
        path = _normal(name.path)
        if len(path) > COMPARED:
            return None
        words = set(path.split("_"))
        near = [
            known
            for known, (of_name, candidates) in self._words.items()
            if not words.isdisjoint(of_name)
            and (
                name.component is None
                or any(targets[0].component in (name.component, None) for targets in candidates)
            )
        ]
        # The names whose words differ least from those of the missing name.
        near = heapq.nsmallest(SHORTLIST, near, key=lambda known: len(words ^ self._words[known][0]))
        same = {known.lower(): known for known in near}
        close = difflib.get_close_matches(path.lower(), same, n=1, cutoff=SIMILAR)
        return self._words[same[close[0]]][1][0][0].name if close else None

    @cached_property
    def _words(self) -> dict[str, tuple[frozenset[str], list[Meaning]]]:
        """Every name but very long ones, with its words and its meanings."""
        # The model's own names come last, to replace equal names of other tools.
        known = {
            **dict(islice(self._elsewhere.items(), SEARCHED)),
            **dict(islice(self._own.items(), SEARCHED)),
        }
        return {
            name: (frozenset(name.split("_")), candidates)
            for name, candidates in islice(known.items(), SEARCHED)
            if len(name) <= COMPARED
        }

    def written(self, dialect: str, *, lokr: bool = False) -> Written:
        """The names that a dialect writes; with `lokr` in a file that holds LoKr, see `Write.lokr`.

        These are the same unless the dialect has other names for LoKr in this model.
        """
        lokr = lokr and write_of(dialect).lokr is not None and not self.targets.in_diffusers
        if (dialect, lokr) not in self._written:
            names = Written(self.targets, dialect, lokr=lokr)
            plain = lokr and not names.in_component(UNET)
            self._written[dialect, lokr] = self.written(dialect) if plain else names
        return self._written[dialect, lokr]


@dataclass(frozen=True, eq=False)
class Spelled:
    """A name that a dialect writes, and the rows of the model that it means.

    PEFT and LyCORIS do not write the component of the model, so layers of two components can have the same
    name.
    """

    component: str
    """The component of the model: `unet` or a text encoder."""
    prefix: str
    path: str
    """The name without the prefix."""
    targets: Meaning
    spans: tuple[Span, ...]
    """The rows that the targets are."""
    shape: Shape
    """The shape of the named layer's weight. A weight of unknown shape counts as one row."""

    @property
    def name(self) -> str:
        return self.prefix + self.path


class Written:
    """All names that a dialect has for a model's layers, and the rows of the layers that each name means."""

    def __init__(self, targets: Targets, dialect: str, *, lokr: bool) -> None:
        self.dialect = dialect
        self._all: list[Spelled] = []
        # For each weight, the names that mean rows of it. An entry is such a name, a row of the layer of that
        # name, and the rows of the weight that begin at this row.
        self._known_by: dict[str, list[tuple[Spelled, int, Rows]]] = {}
        write, components = write_of(dialect), Components(targets.layers, targets.in_diffusers)
        # A model in diffusers' own layout already has the paths that diffusers and PEFT write.
        layout = Layers.own if targets.in_diffusers else (write.lokr if lokr else None) or write.layout
        for component, layers in targets.layers.items():
            prefix = write.prefix if isinstance(write.prefix, str) else write.prefix(component, components)
            members = targets.by_component[component]
            # The host's text encoders have the paths of transformers, which all tools write.
            for path, targets_of_name in (layout if component == UNET else Layers.own)(layers).items():
                targets_meant = tuple(
                    members[target.path][0].taking(target.rows) for target in targets_of_name
                )
                spans = targets.spans(targets_meant)
                total = sum(end - start for _, (start, end) in spans)
                shape = (total, *layers.shapes[targets_of_name[0].path][1:])
                said = path.replace(".", "_") if write.flat else path
                name = Spelled(component, prefix, said, targets_meant, spans, shape)
                self._all.append(name)
                at = 0
                for key, rows in spans:
                    self._known_by.setdefault(key, []).append((name, at, rows))
                    at += rows[1] - rows[0]

    @cached_property
    def exactly(self) -> frozenset[tuple[Span, ...]]:
        """The rows for just which there is a name."""
        return frozenset(name.spans for name in self._all)

    def in_component(self, component: str) -> list[Spelled]:
        """The names in a component of the model."""
        return [name for name in self._all if name.component == component]

    def meeting(self, span: Span) -> list[tuple[Spelled, int, Rows]]:
        """The names that mean some of these rows: each with the first of its layer's rows, and the rows."""
        key, (first, last) = span
        met: list[tuple[Spelled, int, Rows]] = []
        for name, offset, (begin, end) in self._known_by.get(key, ()):
            start, stop = max(first, begin), min(last, end)
            if start < stop:
                met.append((name, offset + start - begin, (start, stop)))
        return met


def _enter(index: _Index, name: str, targets: Meaning) -> None:
    """Add one meaning of a name; several tables can give the same one."""
    known = index.setdefault(_normal(name), [])
    if len(known) < RIVALS and targets not in known:
        known.append(targets)


def _normal(path: str) -> str:
    """A name in the form in which names are compared.

    Dots become underscores, as in kohya's dialect. Underscores at the end are dropped, because Flux files of
    TheLastBen's trainer have one more there (ComfyUI issue 4347).
    """
    return path.replace(".", "_").rstrip("_")
