"""The names that an adapter's layers get in another dialect, and the rows that go under each name.

A layer's path is either in the model's own layout or in that of diffusers. Where both dialects use the same
layout, and no underscores of a name have to become dots again, only the prefix of the name changes. All other
names need the model's keys. From these, `_Names` lists every name of the dialect to write, with the rows of
the model's layers that it means. `Targets` tells which rows the adapter's own layers mean. Each written layer
is made of the pieces of the adapter's layers that mean its rows.

diffusers reads LoKr for a few models only. There it may have fused layers, which it does not have for LoRA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, Protocol, get_args

from ..algorithms import Layer
from ..algorithms.lokr import Lokr
from ..errors import MatchError, either
from ..maths.shapes import Extent, Rows, Shape
from .architectures import DIFFUSERS, DIFFUSERS_LOKR, Place, Places
from .architectures.base import Aliases
from .layer_name import LayerName
from .targets import Target, Targets

Written = Literal["kohya", "comfy", "peft", "diffusers", "lycoris"]
WRITTEN: tuple[Written, ...] = get_args(Written)
"""The dialects that can be written."""

KEPT: Written = "comfy"
"""The dialect whose tensors are written under names that stay as they are."""


def own_dialect(spoken: str) -> Written | None:
    """The dialect in which an adapter is written where none is asked for: the one that its names are in.

    None where that is none of `WRITTEN`: then the names stay as they are.
    """
    return next((dialect for dialect in WRITTEN if dialect == spoken), None)


UNET, PEFT_PREFIX = "unet", "base_model.model."
LDM, LABELS = ("input_blocks.0.0", "middle_block.0.in_layers.2"), "label_emb.0.0"
"""Layers of every UNet of the SD family; a layer of UNets with a vector beside the prompt (SDXL)."""
CASCADE, MMDIT = "clf.1", "joint_blocks.0.x_block.attn.qkv"
"""A layer that only Stable Cascade has, and one that only SD3 has."""

FLAT: tuple[Written, ...] = ("kohya", "lycoris")
"""Dialects that write underscores for the dots of a path."""
SAME_PATH: dict[tuple[str, Written], str] = {
    ("diffusers", "peft"): PEFT_PREFIX,
    ("diffusers", "lycoris"): "lycoris_",
    ("onetrainer", "lycoris"): "lycoris_",
    ("peft", "peft"): PEFT_PREFIX,
    ("peft", "lycoris"): "lycoris_",
    ("comfy", "kohya"): "lora_unet_",
}
"""(dialect of the name, dialect to write) to the prefix to write, for pairs that have the same layout.

PEFT and LyCORIS write the paths of whatever module they were given: for image models, diffusers' model.
"""

KOHYA_ENCODERS = {"clip_l": 1, "clip_h": 1, "clip_g": 2, "t5xxl": 3}
"""kohya-ss numbers encoders by their kind: T5 is the third in Flux too, which has no second."""
ENCODER_ORDER = ("clip_l", "clip_h", "hydit_clip", "clip_g", "t5xxl", "mt5xl", "llama")
"""The order of text encoders in diffusers' pipelines. HunyuanVideo alone has Llama first."""
SD3_ENCODERS = {"clip_l": 1, "clip_g": 2, "t5xxl": 3}
"""The numbers in diffusers' pipeline of SD3. They stay the same where some of the three are absent."""


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


@dataclass(frozen=True)
class Planned:
    """A layer to write: its name, and the pieces that it is made of, in the order of its rows."""

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
        """The adapter's layers that it is made of, each once."""
        return tuple(dict.fromkeys(piece.layer for piece in self.pieces))


def plan_names(
    layers: Mapping[str, Sized], dialect: Written | None, targets: Targets | None, file: str
) -> list[Planned]:
    """The layers to write for all layers of an adapter.

    layers: the adapter's layers by name. targets: the model that the adapter is for, None where it is not
    given. file: the adapter's file, for errors. dialect: None leaves the names as they are.

    Raises MatchError where a name cannot be translated without a model; where the model has no layer of that
    name, several of them, or one of another shape; where the dialect has no name for the layer; and where two
    layers would get one name or change the same rows.
    """
    if dialect is None:
        return [Planned(name, (Piece(name),), _part(name)) for name in layers]
    names = None if targets is None else _Names(targets, dialect)
    lokr = {name for name, layer in layers.items() if layer.algorithm is Lokr}
    apart = _lokr_names(targets) if targets is not None and lokr and dialect == "diffusers" else ()
    if not apart:
        # LoKr layers are named like all others.
        lokr.clear()
    planned: list[Planned] = []
    through: dict[str, tuple[Target, ...]] = {}
    # Under which names diffusers reads LoKr depends on the whole file, even where it is diffusers' already.
    same = {name: None if name in lokr else _as_it_is(name, dialect) for name in layers}
    others = [name for name, kept in same.items() if not kept]
    found: Mapping[str, tuple[Target, ...]] = {}
    if targets is not None:
        found = targets.find_each(map(LayerName.of, others), file).places
    for name, layer in layers.items():
        kept, places = same[name], found.get(name, ())
        if not places:
            written = kept or _by_prefix(name, dialect)
            if written is None:
                raise _needs_model(file, name, dialect, targets)
            planned.append(Planned(written, (Piece(name),), _part(name)))
        elif targets is not None:
            _check_fit(file, name, layer, places, targets)
            through[name] = places
    if names is not None:
        planned += names.of({name: at for name, at in through.items() if name not in lokr}, file)
    if apart:
        found = {name: at for name, at in through.items() if name in lokr}
        # All layers in one of the layouts, because diffusers' model has one of them at a time.
        best = max(apart, key=lambda names: sum(map(names.has, found.values())))
        planned += [replace(one, takes_lokr=one.part == UNET) for one in best.of(found, file)]
    _check_distinct(planned, file, dialect)
    return planned


def _lokr_names(targets: Targets) -> tuple[_Names, ...]:
    """The layouts in which diffusers reads LoKr for a model; () where it reads none."""
    fused = _Names(targets, "diffusers", DIFFUSERS_LOKR)
    return (_Names(targets, "diffusers"), fused) if fused.shapes(UNET) else ()


def _as_it_is(name: str, dialect: Written) -> str | None:
    """The name itself where the dialect would write it just so, else None."""
    said = LayerName.of(name)
    # Of the prefixes that are read as PEFT's, only one is written.
    return (
        name if said.dialect == dialect and (dialect != "peft" or said.prefix.text == PEFT_PREFIX) else None
    )


def _by_prefix(name: str, dialect: Written) -> str | None:
    """The name with the dialect's prefix; None where more than the prefix differs."""
    said = LayerName.of(name)
    path = said.path
    written = SAME_PATH.get((said.dialect or "", dialect))
    if written is None:
        return None
    if dialect == "kohya" and (said.part != UNET or _is_ldm_path(path)):
        # The numbers of text encoders depend on the model, and so does a UNet's layout: kohya-ss has that of
        # diffusers for SD1.5 and the original one for SDXL.
        return None
    return written + (path.replace(".", "_") if dialect in FLAT else path)


def _is_ldm_path(path: str) -> bool:
    return re.match(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\.", path) is not None


def _part(name: str) -> str | None:
    """The part of a model, as a name says it without a model; None where it does not."""
    said = LayerName.of(name)
    if said.part != "te":
        return said.part
    return f"text encoder {said.path.partition('.')[0] if said.encoder is None else said.encoder}"


def _needs_model(file: str, name: str, dialect: Written, targets: Targets | None) -> MatchError:
    if targets is None:
        return MatchError(
            f"the layer's name cannot be written as {dialect} without the model that it is for",
            file=file,
            key=name,
            got="no model",
            expected="the names of the model's layers",
            hint="Give the model: connect it to the node, or name its file on the command line (--model or "
            "--base). Or name no dialect: then the layers keep the names that they have",
        )
    near = targets.nearest(name)
    return MatchError(
        f"the model has no layer of that name, so it cannot be written as {dialect}",
        file=file,
        key=name,
        got=", ".join(sorted(filter(None, (*targets.parts, *targets.encoders)))) or "an unknown model",
        expected=f"a layer such as {near}" if near else "the model that the adapter was made for",
        hint="Give every part that the adapter changes: the diffusion model and the text encoders",
    )


def _another(dialect: str) -> str:
    """What to do where a dialect has no name of its own for a layer."""
    if dialect == "comfy":
        return "Name no dialect: then the layers keep the names that they have"
    return "Write it as comfy, which has the model's own names, or name no dialect"


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


def _check_distinct(planned: Iterable[Planned], file: str, dialect: Written) -> None:
    seen: dict[str, Planned] = {}
    for layer in planned:
        other = seen.setdefault(layer.name, layer)
        if other is not layer:
            raise MatchError(
                f"two layers would have one name in {dialect}",
                file=file,
                key=layer.name,
                got=" and ".join((*other.sources, *layer.sources)),
                expected="a dialect that keeps the parts of a model apart",
                hint=f"Write it as {either([d for d in ('kohya', 'comfy', 'diffusers') if d != dialect])}",
            )


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

The part is needed because PEFT and LyCORIS do not write it: two parts can have a layer of one written name.
"""


class _Names:
    """All names that a dialect has for a model's layers, and the rows of the layers that each name means.

    `tables` give the names of diffusers' models.
    """

    def __init__(self, targets: Targets, dialect: Written, tables: Sequence[Aliases] = DIFFUSERS) -> None:
        self._targets = targets
        self._dialect = dialect
        self._tables = tables
        self._bases: dict[tuple[str, str], Target] = {}
        self._means: dict[_Name, Segments] = {}
        # The reverse: a layer of the model to the names that mean rows of it, each with the first row under
        # that name and the segment that begins there.
        self._known_by: dict[tuple[str, str], list[tuple[_Name, int, _Segment]]] = {}
        parts: dict[str, dict[str, Target]] = {}
        for target in targets.all:
            part = target.encoder or ("te" if target.part == "te" else UNET)
            parts.setdefault(part, {})[target.path] = target
            self._bases[part, target.path] = target
        self.parts = frozenset(parts)
        for part, members in parts.items():
            self._enter_part(part, members)

    def _enter_part(self, part: str, members: Mapping[str, Target]) -> None:
        """Enter the dialect's names for the layers of one part of the model."""
        shapes = {path: self._targets.shape_of(target) for path, target in members.items()}
        prefix = self._prefix(part, shapes)
        for path, places in self._layout(part, shapes).items():
            name = prefix + (path.replace(".", "_") if self._dialect in FLAT else path)
            segments = tuple(_Segment((part, place.path), _rows(place, shapes)) for place in places)
            self._means[part, name] = segments
            first = 0
            for segment in segments:
                self._known_by.setdefault(segment.base, []).append(((part, name), first, segment))
                first += segment.size

    def _layout(self, part: str, shapes: Mapping[str, Shape]) -> Mapping[str, Places]:
        """The paths that the dialect has in a part of the model, and the places that each one means."""
        own = {path: (Place(path),) for path in shapes}
        # The host's text encoders have the paths of transformers, which all tools write.
        if part != UNET or self._dialect == "comfy":
            return own
        # kohya-ss has diffusers' names for UNets without LABELS, and the original ones for all other models.
        if self._dialect == "kohya":
            return _in_diffusers(shapes, self._tables) if _is_ldm(shapes) and LABELS not in shapes else own
        # A model that diffusers does not have keeps its own paths, unless the file is for diffusers itself.
        found = _in_diffusers(shapes, self._tables)
        return found if found or self._dialect == "diffusers" else own

    def _prefix(self, part: str, shapes: Mapping[str, Shape]) -> str:
        """The prefix that the dialect writes before the paths of a part of the model."""
        if self._dialect in ("peft", "lycoris"):
            return PEFT_PREFIX if self._dialect == "peft" else "lycoris_"
        if part == UNET:
            if self._dialect == "comfy":
                return "diffusion_model."
            if CASCADE in shapes:
                return "lora_prior_unet_" if self._dialect == "kohya" else "prior."
            if self._dialect == "kohya":
                return "lora_unet_"
            return "unet." if _is_ldm(shapes) else "transformer."
        if self._dialect == "comfy":
            return f"text_encoders.{part}.transformer."
        number = self._number(part)
        if self._dialect == "kohya":
            encoders = self.parts - {UNET}
            # kohya-ss does not number a model's only text encoder.
            count = "" if len(encoders) == 1 else str(KOHYA_ENCODERS.get(part, number))
            return f"lora_prior_te{count}_" if (UNET, CASCADE) in self._bases else f"lora_te{count}_"
        return "text_encoder." if number == 1 else f"text_encoder_{number}."

    def _number(self, encoder: str) -> int:
        """The number of a text encoder in diffusers' pipeline for this model, counted from 1."""
        if (UNET, MMDIT) in self._bases:
            return SD3_ENCODERS.get(encoder, 1)
        encoders = set(self.parts) - {UNET}
        if encoders == {"llama", "clip_l"}:
            return 1 if encoder == "llama" else 2
        order = [name for name in ENCODER_ORDER if name in encoders]
        return order.index(encoder) + 1 if encoder in order else 1

    def of(self, layers: Mapping[str, tuple[Target, ...]], file: str) -> list[Planned]:
        """The layers to write for the layers of an adapter, given the places of each in the model.

        file: the adapter's file, for errors. Raises MatchError as `plan_names` does.
        """
        pieces: dict[_Name, list[tuple[Piece, int]]] = {}
        totals: dict[str, int] = {}
        for name, places in layers.items():
            segments = [self._segment(place) for place in places]
            totals[name] = sum(segment.size for segment in segments)
            first = 0
            for segment in segments:
                found = self._overlaps(segment, first, name)
                if sum(size for _, _, size in found) < segment.size:
                    raise self._no_name(file, name, segment)
                for written, piece, size in found:
                    pieces.setdefault(written, []).append((piece, size))
                first += segment.size
        return [self._planned(written, found, totals, file) for written, found in pieces.items()]

    def has(self, places: Iterable[Target]) -> bool:
        """Whether the dialect has a name for just these places."""
        return tuple(map(self._segment, places)) in self._means.values()

    def _segment(self, place: Target) -> _Segment:
        """A place in the model as rows of a layer of the model."""
        part = place.encoder or ("te" if place.part == "te" else UNET)
        base = self._bases[part, place.path]
        # A layer of an OpenCLIP text encoder can itself be rows of a fused weight: count from its first row.
        first = base.rows[0] if base.rows else 0
        if place.rows is None or place.rows == base.rows:
            return _Segment((part, place.path), (0, _size(self._targets.shape_of(base))))
        return _Segment((part, place.path), (place.rows[0] - first, place.rows[1] - first))

    def _overlaps(self, segment: _Segment, first: int, layer: str) -> list[tuple[_Name, Piece, int]]:
        """The written names that mean rows of a segment, each with the piece that goes there and its size.

        layer: the adapter's layer that the segment belongs to. first: the row of that layer at which the
        segment begins. The size is a number of rows.
        """
        found: list[tuple[_Name, Piece, int]] = []
        for name, offset, known in self._known_by.get(segment.base, ()):
            start, stop = max(segment.rows[0], known.rows[0]), min(segment.rows[1], known.rows[1])
            if start < stop:
                begin = first + start - segment.rows[0]
                rows = (begin, begin + stop - start)
                found.append((name, Piece(layer, rows, offset + start - known.rows[0]), stop - start))
        return found

    def _planned(
        self,
        written: _Name,
        found: list[tuple[Piece, int]],
        totals: Mapping[str, int],
        file: str,
    ) -> Planned:
        """The layer to write under a name, made of the pieces that were found for it.

        totals: the number of rows of each of the adapter's layers.
        """
        ordered = [piece for piece, _ in sorted(found, key=lambda item: item[0].at)]
        (part, name), means = written, self._means[written]
        total = sum(segment.size for segment in means)
        self._check_found_again(name, means, file, ordered[0].layer)
        joined = _joined(ordered)
        # All rows of one layer, in its own order: it is written unchanged, whatever its kind.
        if len(joined) == 1 and joined[0].rows == (0, total) and totals[joined[0].layer] == total:
            return Planned(name, (Piece(joined[0].layer),), part)
        unknown = [s.base[1] for s in means if not self._targets.shape_of(self._bases[s.base])]
        for before, after in pairwise(joined):
            if before.rows and before.at + before.rows[1] - before.rows[0] > after.at:
                raise MatchError(
                    "two layers of the adapter mean the same weight",
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
        return Planned(name, tuple(joined), part, (total, *first[1:]))

    def _check_found_again(self, name: str, means: Segments, file: str, layer: str) -> None:
        """Raise MatchError unless a reader finds the same rows of the model under the written name."""
        candidates = [tuple(self._segment(place) for place in places) for places in self._targets.find(name)]
        # A file of PEFT or LyCORIS is for one part of a model and does not say which: there may be rivals.
        alone = self._dialect in ("peft", "lycoris")
        if means not in candidates or (len(candidates) > 1 and not alone):
            raise MatchError(
                f"the name that the layer has in {self._dialect} would not lead back to it in the model",
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
        """Every name that the dialect has in a part of the model, with the shape of its rows together."""
        found: dict[str, Shape] = {}
        for (of, name), segments in self._means.items():
            if of == part:
                first = self._targets.shape_of(self._bases[segments[0].base])
                found[name] = (sum(segment.size for segment in segments), *first[1:])
        return found


def all_names(targets: Targets, dialect: Written, part: str) -> dict[str, Shape]:
    """Every name that a dialect has in a part of a model, with the shape of its rows together."""
    return _Names(targets, dialect).shapes(part)


def _rows(place: Place, shapes: Mapping[str, Shape]) -> Rows:
    return place.rows or (0, _size(shapes[place.path]))


def _size(shape: Shape) -> int:
    """The number of a weight's rows; 1 for (), which stands for a shape that is not known."""
    return shape[0] if shape else 1


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces; neighbours that follow one another in their layer and in the written one are merged."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and last.rows and piece.rows and last.layer == piece.layer:
            size = last.rows[1] - last.rows[0]
            if last.rows[1] == piece.rows[0] and last.at + size == piece.at:
                joined[-1] = Piece(last.layer, (last.rows[0], piece.rows[1]), last.at)
                continue
        joined.append(piece)
    return joined


def _is_ldm(shapes: Mapping[str, Shape]) -> bool:
    return all(path in shapes for path in LDM)


def _in_diffusers(shapes: Mapping[str, Shape], tables: Iterable[Aliases]) -> dict[str, Places]:
    """diffusers' names of the layers, chosen so that every row is under one name only.

    Where names overlap, the one with fewer rows counts: split projections before fused ones. Of names with
    the same rows, the first in the table counts.
    """
    named = [(name, places) for table in tables for name, places in table(shapes).items()]
    sized = sorted(named, key=lambda item: sum(_span(place, shapes) for place in item[1]))
    taken: dict[str, list[Rows]] = {}
    found: dict[str, Places] = {}
    for name, places in sized:
        wanted = [(place.path, _rows(place, shapes)) for place in places]
        if any(
            rows[0] < other[1] and other[0] < rows[1]
            for path, rows in wanted
            for other in taken.get(path, ())
        ):
            continue
        for path, rows in wanted:
            taken.setdefault(path, []).append(rows)
        found[name] = places
    return found


def _span(place: Place, shapes: Mapping[str, Shape]) -> int:
    start, stop = _rows(place, shapes)
    return stop - start
