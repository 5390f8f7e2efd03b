"""The names of an adapter's layers in another dialect, and the rows that each name means.

A layer's path is either in the model's own layout or in diffusers' layout. If both dialects use the same
layout, and no underscores have to become dots again, only the prefix of the name changes: see
`Write.renamed`. All other names need the model's keys: `relation` says which rows of the model each of the
adapter's names means, and which of the new dialect's names mean some of them. Each layer to write is then put
together from the adapter's rows for the same weights.

diffusers reads LoKr for a few models only. For these, LoKr layers may be fused; LoRA layers never are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

from ..algorithms import Layer
from ..algorithms.lokr import Lokr
from ..errors import MatchError
from ..maths.shapes import Extent, Rows, Shape
from ..messages import phrase
from .dialects import KEPT, WRITES, write_of
from .dialects.pipelines import UNET
from .layer_name import LayerName
from .relation import LookedUp, Meaning, Relation, Spelled, Written
from .targets import Targets


class Sized(Protocol):
    """What is known of an adapter's layer before its tensors are read: `reading.adapter.LayerInfo`."""

    @property
    def algorithm(self) -> type[Layer]: ...

    @property
    def shape(self) -> Extent: ...

    @property
    def made_for(self) -> str: ...

    def fits(self, weight: Shape) -> bool: ...


@dataclass(frozen=True)
class Piece:
    """Rows of one of the adapter's layers that become rows of a layer to write."""

    layer: str
    """The adapter's layer."""
    rows: Rows | None = None
    """First row and end in the adapter's layer; None for all rows."""
    at: int = 0
    """The row of the layer to write at which they begin."""

    @property
    def size(self) -> int:
        """The number of rows; 0 where `rows` is None."""
        return self.rows[1] - self.rows[0] if self.rows else 0

    def precedes(self, other: Piece) -> bool:
        """Whether the rows of `other` follow, in the adapter's layer and in the one to write."""
        if self.rows is None or other.rows is None or self.layer != other.layer:
            return False
        return self.rows[1] == other.rows[0] and self.at + self.size == other.at


@dataclass(frozen=True)
class LayerToWrite:
    """A layer to write: its name, and its pieces in the order of its rows."""

    named: LayerName
    pieces: tuple[Piece, ...]
    component: str | None
    """The component of the model: `unet` or a text encoder; None where neither the name nor a model says
    it."""
    shape: Shape | None = None
    """Its weight's shape in the model; None where it is one of the adapter's layers unchanged."""
    takes_lokr: bool = False
    """Whether diffusers is known to read LoKr under this name."""

    @property
    def name(self) -> str:
        return self.named.text

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The adapter's layers that the pieces are from, each once."""
        return tuple(dict.fromkeys(piece.layer for piece in self.pieces))


def plan_names(
    layers: Mapping[str, Sized], dialect: str | None, looked_up: LookedUp, file: str
) -> list[LayerToWrite]:
    """The layers to write for all layers of an adapter.

    layers: the adapter's layers by name. looked_up: what their names mean, if the model that the adapter is
    for is given. file: the adapter's file, for errors. dialect: None leaves the names as they are.

    Raises MatchError where a name cannot be translated without a model; where the model has no layer of that
    name, several of them, or one of another shape; where the dialect has no name for the layer; and where two
    layers would get one name or change the same rows.
    """
    if dialect is None:
        return [_as_one(looked_up.named[name], name, looked_up) for name in layers]
    relation = looked_up.relation
    lokr = {name for name, layer in layers.items() if layer.algorithm is Lokr}
    if lokr and (relation is None or relation.written(dialect, lokr=True) is relation.written(dialect)):
        # LoKr layers are named like all others.
        lokr.clear()
    planned: list[LayerToWrite] = []
    through: dict[str, Meaning] = {}
    # diffusers reads LoKr under names that depend on the whole file, so even its own names may change.
    kept = {name for name in layers if name not in lokr and _is_kept(looked_up.named[name], dialect)}
    meaning_of = looked_up.targets(file, [name for name in layers if name not in kept])
    for name, layer in layers.items():
        said = looked_up.named[name]
        if name in kept:
            planned.append(_as_one(said, name, looked_up))
        elif (targets := meaning_of[name]) and relation is not None:
            _check_fit(file, name, layer, targets, relation.targets)
            through[name] = targets
        else:
            renamed = write_of(dialect).renamed(said.dialect, said.prefix, said.path)
            if renamed is None:
                raise _needs_model(file, said, dialect, relation)
            planned.append(_as_one(LayerName.of(renamed), name, looked_up))
    if relation is not None and through:
        names, fused = relation.written(dialect), relation.written(dialect, lokr=bool(lokr))
        of_lokr = {name: targets for name, targets in through.items() if name in lokr}
        others = {name: targets for name, targets in through.items() if name not in lokr}
        planned += _Regrouping(relation, names, file).of(others)
        # One layout for all LoKr layers, because diffusers fuses all projections of a model or none.
        spans = [relation.targets.spans(targets) for targets in of_lokr.values()]
        best = max((names, fused), key=lambda names: sum(name in names.exactly for name in spans))
        found_lokr = _Regrouping(relation, best, file).of(of_lokr)
        planned += [replace(each, takes_lokr=each.component == UNET) for each in found_lokr]
    _check_distinct(planned, file, dialect)
    return planned


def _as_one(written: LayerName, name: str, looked_up: LookedUp) -> LayerToWrite:
    """A layer of the adapter under this name, whole."""
    return LayerToWrite(written, (Piece(name),), _component(looked_up.named[name]))


def _is_kept(said: LayerName, dialect: str) -> bool:
    """Whether the dialect writes the name without a change."""
    written = write_of(dialect).prefix
    # PEFT's names are read with several prefixes, but only one is written.
    return said.dialect == dialect and (not isinstance(written, str) or said.prefix.text == written)


def _component(said: LayerName) -> str | None:
    """The component of a model that a name states; None where it states none."""
    if said.component != "te":
        return said.component
    return phrase(
        "R-text-encoder-2", partition=said.path.partition(".")[0] if said.encoder is None else said.encoder
    )


def _needs_model(file: str, said: LayerName, dialect: str, relation: Relation | None) -> MatchError:
    name = said.text
    if relation is None:
        return MatchError("E-dialect-needs-model", file=file, key=name, dialect=dialect)
    near, targets = relation.nearest(said), relation.targets
    return MatchError(
        "E-dialect-layer-absent-from-model",
        file=file,
        key=name,
        dialect=dialect,
        got=", ".join(sorted(filter(None, (*targets.components, *targets.encoders))))
        or phrase("R-unknown-model"),
        expected=phrase("R-layer-such-2", near=near) if near else phrase("R-model-adapter-was-made"),
        hint=phrase("R-adapter-was-made-another-model")
        if targets.has_component(said)
        else phrase("R-give-every-part-adapter-changes"),
    )


def _another(dialect: str) -> str:
    """The hint where a dialect has no name for a layer."""
    if dialect == KEPT:
        return phrase("R-leave-dialect-out-then-layers")
    return phrase("R-write-has-model-s-own", kept=KEPT)


def _check_fit(file: str, name: str, layer: Sized, meaning: Meaning, targets: Targets) -> None:
    shape = targets.shape_of(*meaning)
    if shape and layer.shape and not layer.fits(shape):
        raise MatchError(
            "E-model-layer-misfit",
            file=file,
            key=name,
            shape=list(shape),
            name=meaning[0].name,
            got=layer.made_for,
        )


def _check_distinct(planned: Iterable[LayerToWrite], file: str, dialect: str) -> None:
    seen: dict[str, LayerToWrite] = {}
    for layer in planned:
        other = seen.setdefault(layer.name, layer)
        if other is not layer:
            raise MatchError(
                "E-dialect-names-collide",
                file=file,
                key=layer.name,
                dialect=dialect,
                writes=[d for d in WRITES if d != dialect and _says_components(d)],
                got=" and ".join((*other.sources, *layer.sources)),
            )


def _says_components(dialect: str) -> bool:
    """Whether the names of a dialect say the component of the model."""
    return not isinstance(write_of(dialect).prefix, str)


@dataclass(frozen=True)
class _Regrouping:
    """How the layers of an adapter become those that a dialect has for a model."""

    relation: Relation
    names: Written
    file: str
    """The adapter's file, for errors."""

    def of(self, layers: Mapping[str, Meaning]) -> list[LayerToWrite]:
        """The layers to write for these, given the targets of each in the model.

        Raises MatchError as `plan_names` does.
        """
        pieces: dict[Spelled, list[Piece]] = {}
        totals: dict[str, int] = {}
        for layer, targets in layers.items():
            first = 0
            for target, span in zip(targets, self.relation.targets.spans(targets), strict=True):
                begin, end = span[1]
                named = 0
                for written, at, (start, stop) in self.names.meeting(span):
                    rows = (first + start - begin, first + stop - begin)
                    pieces.setdefault(written, []).append(Piece(layer, rows, at))
                    named += stop - start
                if named < end - begin:
                    raise self._no_name(layer, target.path, span[1])
                first += end - begin
            totals[layer] = first
        return [self._planned(written, own, totals) for written, own in pieces.items()]

    def _planned(self, written: Spelled, pieces: list[Piece], totals: Mapping[str, int]) -> LayerToWrite:
        """The layer to write under a name, from the pieces found for it.

        totals: the number of rows of each of the adapter's layers.
        """
        ordered = sorted(pieces, key=lambda piece: piece.at)
        total, name = written.shape[0], self._found_again(written, ordered[0].layer)
        joined = _joined(ordered)
        # All rows of one layer, in its own order: it is written unchanged, whatever its kind.
        if len(joined) == 1 and joined[0].rows == (0, total) and totals[joined[0].layer] == total:
            return LayerToWrite(name, (Piece(joined[0].layer),), written.component)
        unknown = [target.path for target in written.targets if not self.relation.targets.shape_of(target)]
        for before, after in pairwise(joined):
            if before.at + before.size > after.at:
                raise MatchError(
                    "E-layers-share-weight",
                    file=self.file,
                    key=written.name,
                    one=before.layer,
                    other=after.layer,
                )
        if unknown:
            raise MatchError(
                "E-shapes-needed-to-cut", file=self.file, key=joined[0].layer, unknown=unknown[0]
            )
        return LayerToWrite(name, tuple(joined), written.component, written.shape)

    def _found_again(self, written: Spelled, layer: str) -> LayerName:
        """The written name. Raises MatchError unless a reader finds the same rows of the model under it."""
        name = LayerName.of(written.name)
        candidates = [self.relation.targets.spans(targets) for targets in self.relation.meanings(name)]
        # If the dialect does not name the component of the model, layers of other components may share the
        # name.
        if written.spans not in candidates or (len(candidates) > 1 and _says_components(self.names.dialect)):
            raise MatchError(
                "E-dialect-name-not-read-back",
                file=self.file,
                key=layer,
                dialect=self.names.dialect,
                got=written.name,
                expected=written.targets[0].name,
                hint=_another(self.names.dialect),
            )
        return name

    def _no_name(self, layer: str, path: str, rows: Rows) -> MatchError:
        return MatchError(
            "E-dialect-has-no-name",
            file=self.file,
            key=layer,
            dialect=self.names.dialect,
            first=rows[0],
            end=rows[1],
            path=path,
            hint=_another(self.names.dialect),
        )


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces. Two become one if they are adjacent both in their layer and in the written one."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and last.precedes(piece) and last.rows and piece.rows:
            joined[-1] = Piece(last.layer, (last.rows[0], piece.rows[1]), last.at)
        else:
            joined.append(piece)
    return joined
