"""The names of an adapter's layers in another dialect, and the rows that each name means.

A layer's path is either in the model's own layout or in diffusers' layout. If both dialects use the same
layout, and no underscores have to become dots again, only the prefix of the name changes: see
`Write.renamed`. All other names need the model's keys. `_Names` knows which rows of the model's layers each
name of the new dialect means, and `Targets` knows the same for the adapter's names. Each layer to write is
then put together from the adapter's rows for the same weights.

diffusers reads LoKr for a few models only. For these, LoKr layers may be fused; LoRA layers never are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from ..algorithms import Layer
from ..algorithms.lokr import Lokr
from ..errors import MatchError, either
from ..maths.shapes import Extent, Rows, Shape
from .dialects import KEPT, WRITES, write_of
from .dialects.pipelines import UNET, Parts
from .layer_name import LayerName
from .layouts import own, rows_of
from .targets import Target, Targets


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

    name: str
    pieces: tuple[Piece, ...]
    part: str | None
    """The part of the model: `unet` or a text encoder; None where neither the name nor a model says it."""
    shape: Shape | None = None
    """Its weight's shape in the model; None where it is one of the adapter's layers unchanged."""
    takes_lokr: bool = False
    """Whether diffusers is known to read LoKr under this name."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The adapter's layers that the pieces are from, each once."""
        return tuple(dict.fromkeys(piece.layer for piece in self.pieces))


def plan_names(
    layers: Mapping[str, Sized], dialect: str | None, targets: Targets | None, file: str
) -> list[LayerToWrite]:
    """The layers to write for all layers of an adapter.

    layers: the adapter's layers by name. targets: the model that the adapter is for, None where it is not
    given. file: the adapter's file, for errors. dialect: None leaves the names as they are.

    Raises MatchError where a name cannot be translated without a model; where the model has no layer of that
    name, several of them, or one of another shape; where the dialect has no name for the layer; and where two
    layers would get one name or change the same rows.
    """
    if dialect is None:
        return [LayerToWrite(name, (Piece(name),), _part(name)) for name in layers]
    names = None if targets is None else _Names(targets, dialect)
    lokr = {name for name, layer in layers.items() if layer.algorithm is Lokr}
    fused = names.for_lokr() if names and lokr else None
    if fused is None:
        # LoKr layers are named like all others.
        lokr.clear()
    planned: list[LayerToWrite] = []
    through: dict[str, tuple[Target, ...]] = {}
    # diffusers reads LoKr under names that depend on the whole file, so even its own names may change.
    same = {name: None if name in lokr else _as_it_is(name, dialect) for name in layers}
    others = [name for name, kept in same.items() if not kept]
    found: Mapping[str, tuple[Target, ...]] = {}
    if targets is not None:
        found = targets.find_each(map(LayerName.of, others), file).places
    for name, layer in layers.items():
        kept, places = same[name], found.get(name, ())
        if not places:
            said = LayerName.of(name)
            written = kept or write_of(dialect).renamed(said.dialect, said.prefix, said.path)
            if written is None:
                raise _needs_model(file, name, dialect, targets)
            planned.append(LayerToWrite(written, (Piece(name),), _part(name)))
        elif targets is not None:
            _check_fit(file, name, layer, places, targets)
            through[name] = places
    if names is not None:
        planned += names.of({name: at for name, at in through.items() if name not in lokr}, file)
    if names is not None and fused is not None:
        found = {name: at for name, at in through.items() if name in lokr}
        # One layout for all LoKr layers, because diffusers fuses all projections of a model or none.
        best = max((names, fused), key=lambda names: sum(map(names.has, found.values())))
        planned += [replace(one, takes_lokr=one.part == UNET) for one in best.of(found, file)]
    _check_distinct(planned, file, dialect)
    return planned


def _as_it_is(name: str, dialect: str) -> str | None:
    """The name, if the dialect writes it without a change; else None."""
    said = LayerName.of(name)
    written = write_of(dialect).prefix
    # PEFT's names are read with several prefixes, but only one is written.
    kept = said.dialect == dialect and (not isinstance(written, str) or said.prefix.text == written)
    return name if kept else None


def _part(name: str) -> str | None:
    """The part of a model that a name states; None where it states none."""
    said = LayerName.of(name)
    if said.part != "te":
        return said.part
    return f"text encoder {said.path.partition('.')[0] if said.encoder is None else said.encoder}"


def _needs_model(file: str, name: str, dialect: str, targets: Targets | None) -> MatchError:
    if targets is None:
        return MatchError(
            f"the layer's name cannot be written as {dialect} without the model that it is for",
            file=file,
            key=name,
            got="no model",
            expected="the names of the model's layers",
            hint="Give the model that the adapter is for (model; on the command line --model or --base). Or "
            "leave the dialect out: then the layers keep their names",
        )
    near = targets.nearest(name)
    return MatchError(
        f"the model has no layer {name}, so it cannot be written as {dialect}",
        file=file,
        key=name,
        got=", ".join(sorted(filter(None, (*targets.parts, *targets.encoders)))) or "an unknown model",
        expected=f"a layer such as {near}" if near else "the model that the adapter was made for",
        hint="The adapter was made for another model"
        if targets.has_part(LayerName.of(name))
        else "Give every part that the adapter changes: the diffusion model and the text encoders",
    )


def _another(dialect: str) -> str:
    """The hint where a dialect has no name for a layer."""
    if dialect == KEPT:
        return "Leave the dialect out: then the layers keep their names"
    return f"Write it as {KEPT}, which has the model's own names, or leave the dialect out"


def _check_fit(file: str, name: str, layer: Sized, places: Sequence[Target], targets: Targets) -> None:
    shape = targets.shape_of(*places)
    if shape and layer.shape and not layer.fits(shape):
        raise MatchError(
            "the layer does not fit the model's layer of that name",
            file=file,
            key=name,
            got=layer.made_for,
            expected=f"{list(shape)} of {places[0].name}",
            hint="The adapter was made for another model",
        )


def _check_distinct(planned: Iterable[LayerToWrite], file: str, dialect: str) -> None:
    seen: dict[str, LayerToWrite] = {}
    for layer in planned:
        other = seen.setdefault(layer.name, layer)
        if other is not layer:
            raise MatchError(
                f"two layers would get the same name in {dialect}",
                file=file,
                key=layer.name,
                got=" and ".join((*other.sources, *layer.sources)),
                expected="a dialect that keeps the parts of a model apart",
                hint=f"Write it as {either([d for d in WRITES if d != dialect and _says_parts(d)])}",
            )


def _says_parts(dialect: str) -> bool:
    """Whether the names of a dialect say the part of the model."""
    return not isinstance(write_of(dialect).prefix, str)


@dataclass(frozen=True)
class _Segment:
    """Rows of one of the model's layers."""

    base: tuple[str, str]
    """The layer: its part (`unet` or a text encoder), and its path in that part."""
    rows: Rows
    """First row and end in that layer."""

    @property
    def size(self) -> int:
        return self.rows[1] - self.rows[0]


Segments = tuple[_Segment, ...]
_Name = tuple[str, str]
"""The part (`unet` or a text encoder) and the written name with its prefix.

PEFT and LyCORIS do not write the part, so layers of two parts can have the same written name.
"""


class _Names:
    """All names that a dialect has for a model's layers, and the rows of the layers that each name means.

    With `lokr` they are the dialect's names in a file of LoKr (see `Write.lokr`).
    """

    def __init__(self, targets: Targets, dialect: str, *, lokr: bool = False) -> None:
        self._targets = targets
        self._dialect = dialect
        self._bases: dict[tuple[str, str], Target] = {}
        self._means: dict[_Name, Segments] = {}
        # The reverse: for each layer of the model, the names that mean rows of it. An entry is such a name,
        # a row of the layer of that name, and the segment of the model that begins at this row.
        self._known_by: dict[tuple[str, str], list[tuple[_Name, int, _Segment]]] = {}
        shapes: dict[str, dict[str, Shape]] = {}
        for target in targets.all:
            part = _part_of(target)
            self._bases[part, target.path] = target
            shapes.setdefault(part, {})[target.path] = targets.shape_of(target)
        write, parts = write_of(dialect), Parts(shapes, targets.in_diffusers)
        # A model in diffusers' own layout already has the paths that diffusers and PEFT write.
        layout = own if targets.in_diffusers else (write.lokr if lokr else None) or write.layout
        for part, known in shapes.items():
            prefix = write.prefix if isinstance(write.prefix, str) else write.prefix(part, parts)
            # The host's text encoders have the paths of transformers, which all tools write.
            for path, places in (layout if part == UNET else own)(known).items():
                name = prefix + (path.replace(".", "_") if write.flat else path)
                self._enter((part, name), [_Segment((part, at.path), rows_of(at, known)) for at in places])

    def _enter(self, name: _Name, segments: Sequence[_Segment]) -> None:
        """Enter a name, given the rows that it means."""
        self._means[name] = tuple(segments)
        first = 0
        for segment in segments:
            self._known_by.setdefault(segment.base, []).append((name, first, segment))
            first += segment.size

    def for_lokr(self) -> _Names | None:
        """The dialect's names for a file that holds LoKr; None if they are the same as these."""
        if write_of(self._dialect).lokr is None or self._targets.in_diffusers:
            return None
        names = _Names(self._targets, self._dialect, lokr=True)
        return names if names.shapes(UNET) else None

    def of(self, layers: Mapping[str, tuple[Target, ...]], file: str) -> list[LayerToWrite]:
        """The layers to write for the layers of an adapter, given the places of each in the model.

        file: the adapter's file, for errors. Raises MatchError as `plan_names` does.
        """
        pieces: dict[_Name, list[Piece]] = {}
        totals: dict[str, int] = {}
        for name, places in layers.items():
            segments = [self._segment(place) for place in places]
            totals[name] = sum(segment.size for segment in segments)
            first = 0
            for segment in segments:
                found = self._overlaps(segment, first, name)
                if sum(piece.size for _, piece in found) < segment.size:
                    raise self._no_name(file, name, segment)
                for written, piece in found:
                    pieces.setdefault(written, []).append(piece)
                first += segment.size
        return [self._planned(written, found, totals, file) for written, found in pieces.items()]

    def has(self, places: Iterable[Target]) -> bool:
        """Whether the dialect has a name for just these places."""
        return tuple(map(self._segment, places)) in self._means.values()

    def _segment(self, place: Target) -> _Segment:
        """A place in the model as rows of one of its layers."""
        part = _part_of(place)
        base = self._bases[part, place.path]
        # A layer of an OpenCLIP text encoder can itself be rows of a fused weight: count from its first row.
        first = base.rows[0] if base.rows else 0
        if place.rows is None or place.rows == base.rows:
            shape = self._targets.shape_of(base)
            # A layer whose shape is not known, (), counts as one row.
            return _Segment((part, place.path), (0, shape[0] if shape else 1))
        return _Segment((part, place.path), (place.rows[0] - first, place.rows[1] - first))

    def _overlaps(self, segment: _Segment, first: int, layer: str) -> list[tuple[_Name, Piece]]:
        """The written names that mean rows of a segment, each with its piece.

        layer: the adapter's layer that the segment belongs to. first: the row of that layer at which the
        segment begins.
        """
        found: list[tuple[_Name, Piece]] = []
        for name, offset, known in self._known_by.get(segment.base, ()):
            start, stop = max(segment.rows[0], known.rows[0]), min(segment.rows[1], known.rows[1])
            if start < stop:
                begin = first + start - segment.rows[0]
                rows = (begin, begin + stop - start)
                found.append((name, Piece(layer, rows, offset + start - known.rows[0])))
        return found

    def _planned(
        self,
        written: _Name,
        found: list[Piece],
        totals: Mapping[str, int],
        file: str,
    ) -> LayerToWrite:
        """The layer to write under a name, from the pieces found for it.

        totals: the number of rows of each of the adapter's layers.
        """
        ordered = sorted(found, key=lambda piece: piece.at)
        (part, name), means = written, self._means[written]
        total = sum(segment.size for segment in means)
        self._check_found_again(name, means, file, ordered[0].layer)
        joined = _joined(ordered)
        # All rows of one layer, in its own order: it is written unchanged, whatever its kind.
        if len(joined) == 1 and joined[0].rows == (0, total) and totals[joined[0].layer] == total:
            return LayerToWrite(name, (Piece(joined[0].layer),), part)
        unknown = [s.base[1] for s in means if not self._targets.shape_of(self._bases[s.base])]
        for before, after in pairwise(joined):
            if before.at + before.size > after.at:
                raise MatchError(
                    "two layers of the adapter are for the same weight",
                    file=file,
                    key=name,
                    got=f"{before.layer} and {after.layer}",
                    expected="one layer",
                )
        if unknown:
            raise MatchError(
                "the layer has to be cut or joined, which needs the shapes of the model's weights",
                file=file,
                key=joined[0].layer,
                got=f"no shape of {unknown[0]}",
                expected="the model's keys with their shapes, as `read_shapes` gives them",
            )
        first = self._targets.shape_of(self._bases[means[0].base])
        return LayerToWrite(name, tuple(joined), part, (total, *first[1:]))

    def _check_found_again(self, name: str, means: Segments, file: str, layer: str) -> None:
        """Raise MatchError unless a reader finds the same rows of the model under the written name."""
        candidates = [tuple(self._segment(place) for place in places) for places in self._targets.find(name)]
        # If the dialect does not name the part of the model, layers of other parts may share the name.
        if means not in candidates or (len(candidates) > 1 and _says_parts(self._dialect)):
            raise MatchError(
                f"the layer's name in {self._dialect} would not be read back as this layer of the model",
                file=file,
                key=layer,
                got=name,
                expected=self._bases[means[0].base].name,
                hint=_another(self._dialect),
            )

    def _no_name(self, file: str, layer: str, segment: _Segment) -> MatchError:
        return MatchError(
            f"the layer has no name in {self._dialect}",
            file=file,
            key=layer,
            got=f"rows {segment.rows[0]} to {segment.rows[1]} of {segment.base[1]}",
            expected="a layer that diffusers' model has",
            hint=_another(self._dialect),
        )

    def shapes(self, part: str) -> dict[str, Shape]:
        """Every name that the dialect has in a part of the model, with the shape of its weight."""
        found: dict[str, Shape] = {}
        for (of, name), segments in self._means.items():
            if of == part:
                first = self._targets.shape_of(self._bases[segments[0].base])
                found[name] = (sum(segment.size for segment in segments), *first[1:])
        return found


def all_names(targets: Targets, dialect: str, part: str) -> dict[str, Shape]:
    """Every name that a dialect has in a part of a model, with the shape of its weight."""
    return _Names(targets, dialect).shapes(part)


def _part_of(target: Target) -> str:
    """The part of the model: `unet`, or a text encoder by the host's name, `te` if it has none."""
    return target.encoder or ("te" if target.part == "te" else UNET)


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
