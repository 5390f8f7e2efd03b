"""Find the weights of a model or checkpoint by every name that adapter files give them.

`Targets` takes the keys and shapes of a model, or of a checkpoint file. It finds a weight under the model's
own path, under other tools' names for the layer, and under the usual names of fused and split layers.
"""

from __future__ import annotations

import difflib
import heapq
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice, takewhile
from typing import NamedTuple, cast

from ..errors import LycorisError, MatchError
from ..maths.shapes import Rows, Shape, stacked
from . import open_clip
from .architectures import Places, recognise
from .dialects import Component
from .diffusers_models import diffusers_part
from .fronts import is_of_encoder, shared_fronts
from .fused_attention import fallback
from .layer_name import LayerName

WEIGHT, BIAS = ".weight", ".bias"
IN_PROJ = ".in_proj_weight"
"""The end of the key of the fused input weight in torch's attention."""
NORM, NORM_SCALE = "_norm", "_norm.scale"
"""The original files of Flux call a norm's weight `<path>_norm.scale`; its path here is `<path>_norm`."""

UNET_WRAPPERS = ("model.diffusion_model.", "diffusion_model.")
"""Prefixes of a diffusion model's keys, in checkpoint files and in the host."""
BARE_WRAPPERS = ("model.model.", "net.")
"""Prefixes of the keys in files that hold a diffusion model alone (Stable Audio, Cosmos).

A prefix counts where more than half of a file's keys have it. The host has the same two in
`comfy.model_detection.unet_prefix_from_state_dict`.
"""
ENCODER_WRAPPERS = {
    "cond_stage_model.transformer.": "clip_l",
    "conditioner.embedders.0.transformer.": "clip_l",
}
"""From the prefix of a text encoder's keys in a checkpoint file to the host's name of the encoder.

The layouts are those of CompVis and Stability AI.
"""
OPEN_CLIP_WRAPPERS = {
    "conditioner.embedders.1.model.": "clip_g",
    # The SDXL refiner has CLIP-G alone. Where SD2 uses this layout it has CLIP-H, recognised by its width.
    "conditioner.embedders.0.model.": "clip_g",
    "cond_stage_model.model.": "clip_h",
}
"""The same for text encoders in OpenCLIP's own layout, whose paths `open_clip.places` translates.

These names are used if the width of the encoder is not in `CLIP_WIDTHS`.
"""
_OPEN_CLIP = tuple(OPEN_CLIP_WRAPPERS)
_ENCODERS = (*_OPEN_CLIP, *ENCODER_WRAPPERS)
HOST_ENCODERS, HOST_ENCODER = "text_encoders.", "transformer."
"""The host's keys of text encoders are `<name>.transformer.<path>`; a checkpoint that it saves has
`text_encoders.` before them."""
BARE_ENCODER = re.compile(r"(text_model\.|encoder\.block\.|model\.layers\.\d+\.self_attn\.)")
"""Beginnings of keys that only a file of one text encoder has (CLIP, T5, language models)."""
CLIP_WIDTHS = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
"""From the width of a CLIP text model to the host's name. All of them have the same keys."""
ENCODERS = {
    1: ("clip_l", "clip_h", "hydit_clip", "llama", "t5xxl"),
    2: ("clip_g", "t5xxl", "mt5xl", "clip_l"),
    3: ("t5xxl",),
    4: ("llama",),
}
"""From the number of a text encoder in an adapter file, counted from 1, to the host's encoders that it can
mean.

The number means the first of these that has the layer. Architectures count differently: HunyuanVideo counts
Llama before CLIP; PixArt has T5 alone.
"""
WRAPPED = 3
"""The most words in front of the paths in a model file. Known fronts have two at most: `model.model.`."""
RIVALS = 32
"""How many meanings of one name are kept. Even two are an error, unless they are in different parts of the
model, and no model has this many parts."""
LONG = 256
"""Characters of the longest name that is looked up among other tools' names. Real names have about 100."""
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
KNOWN_ENCODERS = frozenset(name for names in ENCODERS.values() for name in names)
FIRST_OF_ALL = ("clip_l", "clip_h", "clip_g")
"""The order of encoders for a file that does not number them. All others come after these."""
ENCODER_ROOTS = ("text_model.", "model.", "bert.")
"""Beginnings of a text encoder's paths that an adapter file may lack.

Not all classes of transformers have them: a CLIP text model of transformers 5 has no `text_model`.
"""


class Target(NamedTuple):
    """One weight that an adapter layer can be added to."""

    key: str
    """Its key in the model or checkpoint."""
    path: str
    """Its path in its part of the model, without the part's prefix and `.weight`."""
    part: Component | None
    """The diffusion model or a text encoder; None where the keys of a file do not say which."""
    encoder: str | None = None
    """The host's name of the text encoder, such as `clip_l`; None outside one, or where it is not known."""
    rows: tuple[int, int] | None = None
    """First row and end, where the target is only some of the weight's rows; None for all rows."""
    bias: str | None = None
    """The key of the bias beside the weight; None where there is none."""

    @property
    def name(self) -> str:
        """The host's name of the layer, the same for a loaded model and for a checkpoint file.

        Where the keys of a file do not say which part of a model they belong to, it is the path alone.
        """
        if self.part == "unet":
            return f"diffusion_model.{self.path}"
        return f"{self.encoder}.transformer.{self.path}" if self.encoder else self.path


class Found(NamedTuple):
    """The meanings of a file's layer names in a model."""

    front: str
    """The text before the names that is no part of them, see `fronts`; "" for none."""
    places: Mapping[str, tuple[Target, ...]]
    """From a layer's name to the one target that it means, or to several whose stacked rows are the layer's;
    () where the model has none."""


class Targets:
    """The weights of one model or checkpoint, by every name that an adapter can have for them.

    shapes: its keys with their shapes; () stands for a shape that is not known.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes
        bare, clips = _bare(shapes), _open_clips(shapes)
        self.in_diffusers = bare.in_diffusers
        """The part of a pipeline, `unet` or `transformer`, if the keys are those of diffusers' own model."""
        self.all = tuple(
            target for key, shape in shapes.items() for target in _targets(key, shapes, shape, bare, clips)
        )
        self._real: _Index = {}
        for target in self.all:
            _enter(self._real, target.path, (target,))
            if target.encoder:
                _enter(self._real, f"{target.encoder}.transformer.{target.path}", (target,))

    @cached_property
    def _aliases(self) -> _Index:
        """Other tools' names. Built on the first look-up of a name that is not the model's own."""
        index: _Index = {}
        for target in self.all:
            if target.encoder:
                _enter(index, f"transformer.{target.path}", (target,))
            if target.path.endswith(IN_PROJ):
                # PEFT adapts it under the name of the attention.
                _enter(index, target.path.removesuffix(IN_PROJ), (target,))
            for root in ENCODER_ROOTS:
                if target.part == "te" and target.path.startswith(root):
                    _enter(index, target.path.removeprefix(root), (target,))
        for (part, _), members in self.by_part.items():
            if part != "te" and (model := recognise(self._short(members))):
                _alias(members, model.in_diffusers(), index)
                _alias(members, model.elsewhere(), index)
        return index

    @cached_property
    def _fallbacks(self) -> _Index:
        """Usual names of fused and split layers. Built on the first look-up of a name that no tool has."""
        index: _Index = {}
        for members in self.by_part.values():
            _alias(members, fallback(self._short(members)), index)
        return index

    def _short(self, members: Mapping[str, Target]) -> dict[str, Shape]:
        """The shapes of targets by path, without paths that are too long to have other names."""
        return {path: self.shape_of(target) for path, target in members.items() if len(path) <= LONG}

    @cached_property
    def by_part(self) -> Mapping[tuple[Component | None, str | None], Mapping[str, Target]]:
        """The targets by path, of each part of the model and each text encoder."""
        found: dict[tuple[Component | None, str | None], dict[str, Target]] = {}
        for target in self.all:
            found.setdefault((target.part, target.encoder), {})[target.path] = target
        return found

    @cached_property
    def parts(self) -> frozenset[Component | None]:
        """The parts of a model that are here; None stands for keys that do not say their part."""
        return frozenset(target.part for target in self.all)

    @cached_property
    def encoders(self) -> frozenset[str]:
        """The host's names of the text encoders that are here."""
        return frozenset(target.encoder for target in self.all if target.encoder)

    def has_part(self, name: LayerName) -> bool:
        """Whether the part of a model that a layer's name states is here; True where it states none."""
        if name.part is None:
            return True
        if name.encoder is not None and self.encoders:
            return any(self._rank(name.encoder, encoder) is not None for encoder in self.encoders)
        # Keys that do not state their part belong to a diffusion model's own file.
        return name.part in self.parts or (name.part == "unet" and None in self.parts)

    def find(self, layer: str) -> tuple[tuple[Target, ...], ...]:
        """What a layer's name in an adapter file means: one candidate, none, or several rivals.

        A candidate is one target, or several whose stacked rows are the layer's. The name is looked up among
        the model's own paths, then among other tools' names, then among the usual names of fused and split
        layers. The first of these that has the name decides.
        """
        return self._meanings(LayerName.of(layer))

    def find_each(self, names: Iterable[LayerName], file: str) -> Found:
        """The one candidate for each layer of a file, () where there is none. Raises MatchError for rivals.

        file: the adapter's file, for the error. A name that the model does not have is looked up without the
        front that the names of the file share, see `_front`.
        """
        front, candidates = self.candidates(names)
        for layer, rivals in candidates.items():
            if len(rivals) > 1:
                named = ["+".join(target.key for target in targets) for targets in rivals[:NAMED]]
                raise MatchError(
                    "a layer's name fits more than one weight of the model",
                    file=file,
                    key=layer,
                    got=" and ".join(named) + (" and more" if len(rivals) > NAMED else ""),
                    expected="one weight",
                    hint="The file does not say which one it means. Apply it only to the part of the model "
                    "that it is for: the diffusion model or one text encoder",
                )
        return Found(front, {layer: found[0] if found else () for layer, found in candidates.items()})

    def candidates(self, names: Iterable[LayerName]) -> tuple[str, dict[str, tuple[tuple[Target, ...], ...]]]:
        """The front that the names of a file's layers share, see `_front`, and what each name means.

        The meanings are as in `find`: of the whole name, or else of the name without the front.
        """
        found = {name: self._meanings(name) for name in names}
        front = self._front(found)
        return front, {name.text: places or self._behind(front, name) for name, places in found.items()}

    def _front(self, found: Mapping[LayerName, tuple[tuple[Target, ...], ...]]) -> str:
        """The front of the names of a file's layers, which is no part of them; "" for none.

        found: what each whole name means, see `find`.

        Tools put anything in front of a path: `pipe.dit.`, `model.`, `module.`, `_orig_mod.`,
        `Hunyuan_video_I2V_lora_`. A front is whole words. Fewer than half of the file's layers have a meaning
        with it, and more than half have exactly one without it. Where two fronts give a layer two meanings,
        neither counts. The part of the model that a name states still holds: a text encoder's layer never
        means a layer of a diffusion model.

        Layers of a part of the model that is not here do not count.
        """
        here = [name for name in found if found[name] or (len(name.text) <= LONG and self.has_part(name))]
        missing = [name for name in here if not found[name]]
        if 2 * len(missing) <= len(here):
            return ""
        best, meanings = "", dict[str, tuple[Target, ...]]()
        for front in shared_fronts([name.text for name in here]):
            behind = self._all_behind(front, missing, len(here) // 2)
            if any(meanings.get(layer, places) != places for layer, places in behind.items()):
                return ""
            if behind and not best:
                best, meanings = front, behind
        return best

    def _all_behind(
        self, front: str, names: Sequence[LayerName], more_than: int
    ) -> dict[str, tuple[Target, ...]]:
        """The meanings of layers' names without a front, for each name that has exactly one.

        Empty unless there are more than `more_than` of them.
        """
        found: dict[str, tuple[Target, ...]] = {}
        for left, name in zip(range(len(names), 0, -1), names, strict=True):
            # Too few names are left to find enough. Without this, a file that matches nothing would cost a
            # search for each layer and front.
            if len(found) + left <= more_than:
                return {}
            candidates = self._behind(front, name)
            if len(candidates) == 1:
                found[name.text] = candidates[0]
        return found if len(found) > more_than else {}

    def _behind(self, front: str, name: LayerName) -> tuple[tuple[Target, ...], ...]:
        """What a layer's name means without a front, as in `find`; () if it does not begin with the front."""
        if not front or not name.text.startswith(front):
            return ()
        part: Component | None = "te" if is_of_encoder(front) else name.part
        candidates = self.find(name.text[len(front) :])
        return tuple(targets for targets in candidates if part in (None, targets[0].part))

    def _meanings(self, name: LayerName) -> tuple[tuple[Target, ...], ...]:
        """What a layer's name means, see `find`."""
        found = self._indexed(name)
        # A model's own path can begin like a prefix: Stable Audio's `transformer.layers`.
        return found if found or not name.prefix.text else self._indexed(LayerName.bare(name.text))

    def _indexed(self, name: LayerName) -> tuple[tuple[Target, ...], ...]:
        path = _normal(name.path)
        # By attribute names, so that a later index is built only where the earlier ones have nothing.
        for tier in ("_real", "_aliases", "_fallbacks") if len(path) <= LONG else ("_real",):
            index: _Index = getattr(self, tier)
            candidates = index.get(path)
            if candidates is None:
                continue
            found = [
                targets for targets in candidates if name.part is None or targets[0].part in (name.part, None)
            ]
            if name.encoder is not None:
                found = self._first(name.encoder, found)
            if found:
                return tuple(found)
        return ()

    def _first(self, number: int, candidates: list[tuple[Target, ...]]) -> list[tuple[Target, ...]]:
        """The candidates in the text encoder that a number means, among all that have the layer."""
        ranks = [self._rank(number, targets[0].encoder) for targets in candidates]
        best = min((rank for rank in ranks if rank is not None), default=-1)
        return [targets for targets, rank in zip(candidates, ranks, strict=True) if rank == best]

    def _rank(self, number: int, encoder: str | None) -> int | None:
        """An encoder's rank among those that a number can mean, from 0; None if the number cannot mean it.

        number: as in `Prefix.encoder`. encoder: the host's name. An encoder that the model's keys do not
        name comes first for every number. A model's only encoder is number 1 if `ENCODERS` does not list it;
        most language models are not listed.
        """
        if encoder is None:
            return 0
        if number == 0:
            return FIRST_OF_ALL.index(encoder) if encoder in FIRST_OF_ALL else len(FIRST_OF_ALL)
        # Only HunyuanVideo, which has Llama first, has CLIP-L as its second encoder.
        if (number, encoder) == (2, "clip_l") and "llama" not in self.encoders:
            return None
        if encoder in ENCODERS.get(number, ()):
            return ENCODERS[number].index(encoder)
        return 0 if number == 1 and len(self.encoders) == 1 and encoder not in KNOWN_ENCODERS else None

    def encoder_of(self, number: int) -> str | None:
        """The host's name of the text encoder that a number means, see `ENCODERS`; None for none."""
        ranks = {encoder: self._rank(number, encoder) for encoder in self.encoders}
        known = {encoder: rank for encoder, rank in ranks.items() if rank is not None}
        return min(known, key=lambda encoder: known[encoder], default=None)

    def nearest(self, layer: str) -> str | None:
        """The layer here whose name is most similar to one that was not found; None where none is similar."""
        name = LayerName.of(layer)
        path = _normal(name.path)
        if len(path) > COMPARED:
            return None
        words = set(path.split("_"))
        near = [
            known
            for known, (of_name, candidates) in self._words.items()
            if not words.isdisjoint(of_name)
            and (name.part is None or any(targets[0].part in (name.part, None) for targets in candidates))
        ]
        # The names whose words differ least from those of the missing name.
        near = heapq.nsmallest(SHORTLIST, near, key=lambda known: len(words ^ self._words[known][0]))
        same = {known.lower(): known for known in near}
        close = difflib.get_close_matches(path.lower(), same, n=1, cutoff=SIMILAR)
        return self._words[same[close[0]]][1][0][0].name if close else None

    @cached_property
    def _words(self) -> dict[str, tuple[frozenset[str], list[tuple[Target, ...]]]]:
        """Every name but very long ones, with its words and its meanings."""
        # The model's own names come last, to replace equal names of other tools.
        known = {
            **dict(islice(self._aliases.items(), SEARCHED)),
            **dict(islice(self._real.items(), SEARCHED)),
        }
        return {
            name: (frozenset(name.split("_")), candidates)
            for name, candidates in islice(known.items(), SEARCHED)
            if len(name) <= COMPARED
        }

    def windows(self, places: Sequence[Target]) -> list[Rows | None]:
        """The rows of a layer for each of its places, from the first row on; None for a single place."""
        if len(places) == 1:
            return [None]
        sizes = [(self.shape_of(place) or (0,))[0] for place in places]
        ends = list(accumulate(sizes))
        return [(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    def shape_of(self, *targets: Target) -> Shape:
        """The shape of one target, or of several stacked: (O, I, *kernel).

        O counts the rows of the targets alone, not of their whole weights. () where a shape is not known.
        """
        return stacked([_shape_of_rows(self.shapes[target.key], target.rows) for target in targets])

    def bias_of(self, *targets: Target) -> Shape:
        """The shape (O,) of the biases beside targets; () where one has none or its shape is not known."""
        biases = [_shape_of_rows(self.shapes[t.bias], t.rows) if t.bias else () for t in targets]
        return stacked(biases)


def _shape_of_rows(shape: Shape, rows: tuple[int, int] | None) -> Shape:
    return (rows[1] - rows[0], *shape[1:]) if rows and shape else shape


_Index = dict[str, list[tuple[Target, ...]]]


def _enter(index: _Index, name: str, targets: tuple[Target, ...]) -> None:
    """Add one meaning of a name; several tables can give the same one."""
    known = index.setdefault(_normal(name), [])
    if len(known) < RIVALS and targets not in known:
        known.append(targets)


def _alias(members: Mapping[str, Target], names: Mapping[str, Places], index: _Index) -> None:
    """Enter other names for the targets of one part of the model."""
    for name, places in names.items():
        _enter(index, name, tuple(_within(members[place.path], place.rows) for place in places))


def _within(target: Target, rows: tuple[int, int] | None) -> Target:
    """Some rows of a target, counted in the target, which may itself be rows of a weight."""
    if rows is None:
        return target
    offset = target.rows[0] if target.rows else 0
    return target._replace(rows=(offset + rows[0], offset + rows[1]))


@dataclass(frozen=True)
class _Bare:
    """The part of a model that keys without a known wrapper belong to, inferred from all keys of a file."""

    wrapper: str = ""
    part: Component | None = None
    encoder: str | None = None
    in_diffusers: str | None = None
    """See `Targets.in_diffusers`."""


def _bare(shapes: Mapping[str, Shape]) -> _Bare:
    for wrapper in BARE_WRAPPERS:
        if 2 * sum(key.startswith(wrapper) for key in shapes) > len(shapes):
            return _Bare(wrapper)
    marks = [key for key in shapes if BARE_ENCODER.match(key)]
    if found := diffusers_part(shapes):
        part, front = found
        return _Bare(front, "unet" if front else None, in_diffusers=part)
    if not marks:
        return _Bare(_wrapper(shapes))
    if any(key.startswith("encoder.block.") for key in marks):
        return _Bare(part="te", encoder="t5xxl")
    # The input of a feed-forward is as wide as the model.
    widths = (shapes[key][-1] for key in marks if key.endswith("mlp.fc1.weight") and shapes[key])
    return _Bare(part="te", encoder=CLIP_WIDTHS.get(next(widths, 0)))


def _wrapper(shapes: Mapping[str, Shape]) -> str:
    """The wrapper around the paths of a known architecture, such as `model.` in files of AuraFlow.

    It is the shortest beginning that most keys share and without which the architecture is recognised; ""
    where the architecture is recognised without removing any, or not at all.
    """
    if any(key.startswith((*UNET_WRAPPERS, *_ENCODERS)) for key in shapes):
        return ""
    weights = {key.removesuffix(WEIGHT): shape for key, shape in shapes.items() if not key.endswith(BIAS)}
    fronts = takewhile(
        # A beginning before a block's number belongs to the model.
        lambda front: (
            not any(path.startswith(front) and path[len(front) :][:1].isdigit() for path in weights)
        ),
        shared_fronts(weights, WRAPPED),
    )
    if not (wrappers := list(fronts)):
        return ""
    for wrapper in ("", *wrappers):
        paths = {
            path.removeprefix(wrapper): shape
            for path, shape in weights.items()
            if len(path) <= LONG and path.startswith(wrapper)
        }
        if recognise(paths):
            return wrapper
    return ""


def _open_clips(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """The text encoders in OpenCLIP's layout: from the prefix of their keys to the host's name."""
    found = dict(OPEN_CLIP_WRAPPERS)
    for wrapper, encoder in found.items():
        shape = shapes.get(f"{wrapper}{open_clip.WIDE}", ())
        found[wrapper] = CLIP_WIDTHS.get(shape[-1], encoder) if shape else encoder
    return found


def _targets(
    key: str, shapes: Mapping[str, Shape], shape: Shape, bare: _Bare, clips: Mapping[str, str]
) -> list[Target]:
    """The targets in the weight of a key: mostly one.

    A fused weight of OpenCLIP holds three. A bias holds none, nor does a key of OpenCLIP that
    `open_clip.places` does not know. clips: see `_open_clips`.
    """
    if key.startswith(_OPEN_CLIP):
        wrapper = next(wrapper for wrapper in _OPEN_CLIP if key.startswith(wrapper))
        places = open_clip.places(key.removeprefix(wrapper), shape)
        bias, encoder = _bias_of(key, shapes), clips[wrapper]
        return [Target(key, path, "te", encoder, rows, bias) for path, rows in places]
    if key.endswith(BIAS):
        return []
    bias = _bias_of(key, shapes)
    path = f"{key.removesuffix(NORM_SCALE)}{NORM}" if key.endswith(NORM_SCALE) else key.removesuffix(WEIGHT)
    for wrapper in UNET_WRAPPERS:
        if path.startswith(wrapper):
            return [Target(key, path.removeprefix(wrapper), "unet", bias=bias)]
    for wrapper, encoder in ENCODER_WRAPPERS.items():
        if path.startswith(wrapper):
            return [Target(key, path.removeprefix(wrapper), "te", encoder, bias=bias)]
    encoder, _, inner = path.removeprefix(HOST_ENCODERS).partition(".")
    if inner.startswith(HOST_ENCODER) and encoder.replace("_", "a").isalnum():
        return [Target(key, inner.removeprefix(HOST_ENCODER), "te", encoder, bias=bias)]
    return [Target(key, path.removeprefix(bare.wrapper), bare.part, bare.encoder, bias=bias)]


def _bias_of(key: str, shapes: Mapping[str, Shape]) -> str | None:
    """The key of the bias beside a weight: `<path>.bias`, or `in_proj_bias` beside `in_proj_weight`."""
    if not key.endswith("weight"):
        return None
    bias = f"{key[: -len('weight')]}bias"
    return bias if bias in shapes else None


def _normal(path: str) -> str:
    """A name in the form in which names are compared.

    Dots become underscores, as in kohya's dialect. Underscores at the end are dropped, because Flux files of
    TheLastBen's trainer have one more there (ComfyUI issue 4347).
    """
    return path.replace(".", "_").rstrip("_")


def known_shapes(keys: Collection[str] | Mapping[str, Shape]) -> dict[str, Shape]:
    """Keys with their shapes. Keys given without shapes get (), which every layer fits.

    The values of a state dict count as their shapes. Raises LycorisError for a model itself.
    """
    if isinstance(keys, Mapping):
        shapes = cast("Mapping[str, Shape]", keys)
        return {name: tuple(getattr(shape, "shape", shape)) for name, shape in shapes.items()}
    if isinstance(keys, str) or not isinstance(keys, Collection):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise LycorisError(
            "a model is given by the keys and shapes of its weights",
            got=type(keys).__name__,
            expected="such as model.state_dict()",
        )
    return dict.fromkeys(keys, ())
