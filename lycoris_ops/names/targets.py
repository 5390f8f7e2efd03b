"""The weights of a model or checkpoint that layers can change: in which component each is, and its path
there.

`relation.Relation` finds them by the names in adapter files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise, takewhile
from typing import NamedTuple, cast

from ..errors import LycorisError
from ..maths.shapes import Rows, Shape, stacked
from . import open_clip
from .architectures import recognise
from .dialects import Component
from .layer_name import LayerName
from .layouts import LONG, Layers

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
"""The same for text encoders in OpenCLIP's own layout, whose paths `open_clip.slices` translates.

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
KNOWN_ENCODERS = frozenset(name for names in ENCODERS.values() for name in names)
FIRST_OF_ALL = ("clip_l", "clip_h", "clip_g")
"""The order of encoders for a file that does not number them. All others come after these."""
WORDS = 8
"""The most words that a front may have. The longest known one, `Hunyuan_video_I2V_lora_`, has four."""
OF_ENCODER = re.compile(r"(?:^|[._])(?:te[0-9]*(?=[._])|text|clip|u?mt5|t5|bert|llama|encoder|llm)")
"""A word that only fronts of text encoders have."""
UNET, TRANSFORMER = "unet", "transformer"
PIPELINE_ENCODERS = "text_encoder"
"""The beginning of the keys of text encoders in a pipeline."""
BLOCK_QUERY = re.compile(
    r"(?:(?:single_)?transformer_blocks|blocks|layers)\.\d+\..*\.(?:to_q|to_k|to_qkv)\.weight"
)
"""A projection in a block of a diffusers transformer."""
UNET_SIDES = ("down_blocks.", "up_blocks.")
"""The two sides of a diffusers UNet. In a VAE they are inside its encoder and decoder."""


def host_name(path: str, component: Component | None, encoder: str | None = None) -> str:
    """The host's name of a layer, by its path in a component of the model; the path alone if no component is
    known."""
    if component == "unet":
        return f"diffusion_model.{path}"
    return f"{encoder}.{HOST_ENCODER}{path}" if encoder else path


class Target(NamedTuple):
    """One weight that an adapter layer can be added to."""

    key: str
    """Its key in the model or checkpoint."""
    path: str
    """Its path in its component of the model, without the component's prefix and `.weight`."""
    component: Component | None
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

        Where the keys of a file do not say which component of a model they belong to, it is the path alone.
        """
        return host_name(self.path, self.component, self.encoder)

    @property
    def within(self) -> str:
        """The component of the model: `unet`, or a text encoder by the host's name, `te` if it has none."""
        return self.encoder or self.component or "unet"

    def taking(self, rows: Rows | None) -> Target:
        """Some rows of the target, counted in the target, which may itself be rows of a weight."""
        if rows is None:
            return self
        offset = self.rows[0] if self.rows else 0
        return self._replace(rows=(offset + rows[0], offset + rows[1]))


Span = tuple[str, Rows]
"""The key of a weight, with the first of its rows and the end."""


class Targets:
    """The weights of one model or checkpoint.

    shapes: its keys with their shapes; () stands for a shape that is not known.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes
        bare, clips = _bare(shapes), _open_clips(shapes)
        self.in_diffusers = bare.in_diffusers
        """The component of a pipeline, `unet` or `transformer`, if the keys are those of diffusers' own
        model."""
        self.all = tuple(
            target for key, shape in shapes.items() for target in _targets(key, shapes, shape, bare, clips)
        )

    @cached_property
    def adaptable(self) -> tuple[Target, ...]:
        """The targets in the components of a model that adapters change.

        If some keys state their component, all others belong to other ones: in a file they are the VAE's, in
        a loaded model they are tables for sampling.
        """
        return tuple(target for target in self.all if target.component is not None) or self.all

    @cached_property
    def by_component(self) -> Mapping[str, Mapping[str, Sequence[Target]]]:
        """The targets by path, of the diffusion model and each text encoder, see `Target.within`.

        A path has several targets where a file holds weights twice, with and without a wrapper.
        """
        targets: dict[str, dict[str, list[Target]]] = {}
        for target in self.all:
            targets.setdefault(target.within, {}).setdefault(target.path, []).append(target)
        return targets

    @cached_property
    def layers(self) -> Mapping[str, Layers]:
        """The layers of each of these components with all their names."""
        return {
            component: Layers({path: self.shape_of(targets[0]) for path, targets in members.items()})
            for component, members in self.by_component.items()
        }

    @cached_property
    def components(self) -> frozenset[Component | None]:
        """The components of a model that are here; None stands for keys that do not say their component."""
        return frozenset(target.component for target in self.all)

    @cached_property
    def encoders(self) -> frozenset[str]:
        """The host's names of the text encoders that are here."""
        return frozenset(target.encoder for target in self.all if target.encoder)

    def has_component(self, name: LayerName) -> bool:
        """Whether the component of a model that a layer's name states is here; True where it states none."""
        if name.component is None:
            return True
        if name.encoder is not None and self.encoders:
            return self.encoder_of(name.encoder) is not None
        # Keys that do not state their component belong to a diffusion model's own file.
        return name.component in self.components or (name.component == "unet" and None in self.components)

    def rank(self, number: int, encoder: str | None) -> int | None:
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
        return self._numbered.get(number)

    @cached_property
    def _numbered(self) -> Mapping[int, str]:
        """For each number that means a text encoder, the encoder of the lowest rank."""
        encoders: dict[int, str] = {}
        for number in (0, *ENCODERS):
            ranks = {encoder: self.rank(number, encoder) for encoder in self.encoders}
            known = {encoder: rank for encoder, rank in ranks.items() if rank is not None}
            if known:
                encoders[number] = min(known, key=known.__getitem__)
        return encoders

    def spans(self, targets: Iterable[Target]) -> tuple[Span, ...]:
        """The rows of weights that targets are. A weight of unknown shape counts as one row."""
        shapes = ((target, self.shapes[target.key]) for target in targets)
        return tuple((target.key, target.rows or (0, shape[0] if shape else 1)) for target, shape in shapes)

    def windows(self, targets: Sequence[Target]) -> list[Rows | None]:
        """The rows of a layer for each of its targets, from the first row on; None for a single target."""
        if len(targets) == 1:
            return [None]
        ends = list(accumulate(end - first for _, (first, end) in self.spans(targets)))
        return list(pairwise((0, *ends)))

    def shape_of(self, *targets: Target) -> Shape:
        """The shape of one target, or of several stacked: (O, I, *kernel).

        O counts the rows of the targets alone, not of their whole weights. () where a shape is not known.
        """
        return stacked([_shape_of_rows(self.shapes[target.key], target.rows) for target in targets])

    def bias_of(self, *targets: Target) -> Shape:
        """The shape (O,) of the biases beside targets; () where one has none or its shape is not known."""
        biases = [_shape_of_rows(self.shapes[t.bias], t.rows) if t.bias else () for t in targets]
        return stacked(biases)


def weight_rows(targets: Sequence[Target]) -> list[tuple[str, Rows | None]]:
    """The keys of the weights of targets, each with the rows taken, see `files.weights.read_rows`."""
    return [(target.key, target.rows) for target in targets]


def bias_rows(targets: Sequence[Target]) -> list[tuple[str, Rows | None]]:
    """The keys of the biases of targets, each with the rows taken; empty unless all have one."""
    biases = [(target.bias, target.rows) for target in targets if target.bias]
    return biases if len(biases) == len(targets) else []


def _shape_of_rows(shape: Shape, rows: tuple[int, int] | None) -> Shape:
    return (rows[1] - rows[0], *shape[1:]) if rows and shape else shape


@dataclass(frozen=True)
class _Bare:
    """The component of a model that keys without a known wrapper belong to, inferred from all keys of a
    file."""

    wrapper: str = ""
    component: Component | None = None
    encoder: str | None = None
    in_diffusers: str | None = None
    """See `Targets.in_diffusers`."""


def _bare(shapes: Mapping[str, Shape]) -> _Bare:
    for wrapper in BARE_WRAPPERS:
        if 2 * sum(key.startswith(wrapper) for key in shapes) > len(shapes):
            return _Bare(wrapper)
    marks = [key for key in shapes if BARE_ENCODER.match(key)]
    if part_and_front := diffusers_component(shapes):
        component, front = part_and_front
        return _Bare(front, "unet" if front else None, in_diffusers=component)
    if not marks:
        return _Bare(_wrapper(shapes))
    if any(key.startswith("encoder.block.") for key in marks):
        return _Bare(component="te", encoder="t5xxl")
    # The input of a feed-forward is as wide as the model.
    widths = (shapes[key][-1] for key in marks if key.endswith("mlp.fc1.weight") and shapes[key])
    return _Bare(component="te", encoder=CLIP_WIDTHS.get(next(widths, 0)))


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
    encoders = dict(OPEN_CLIP_WRAPPERS)
    for wrapper, encoder in encoders.items():
        shape = shapes.get(f"{wrapper}{open_clip.WIDE}", ())
        encoders[wrapper] = CLIP_WIDTHS.get(shape[-1], encoder) if shape else encoder
    return encoders


def _targets(
    key: str, shapes: Mapping[str, Shape], shape: Shape, bare: _Bare, clips: Mapping[str, str]
) -> list[Target]:
    """The targets in the weight of a key: mostly one.

    A fused weight of OpenCLIP holds three. A bias holds none, nor does a key of OpenCLIP that
    `open_clip.slices` does not know. clips: see `_open_clips`.
    """
    if key.startswith(_OPEN_CLIP):
        wrapper = next(wrapper for wrapper in _OPEN_CLIP if key.startswith(wrapper))
        ranges = open_clip.slices(key.removeprefix(wrapper), shape)
        bias, encoder = _bias_of(key, shapes), clips[wrapper]
        return [Target(key, path, "te", encoder, rows, bias) for path, rows in ranges]
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
    return [Target(key, path.removeprefix(bare.wrapper), bare.component, bare.encoder, bias=bias)]


def _bias_of(key: str, shapes: Mapping[str, Shape]) -> str | None:
    """The key of the bias beside a weight: `<path>.bias`, or `in_proj_bias` beside `in_proj_weight`."""
    if not key.endswith("weight"):
        return None
    bias = f"{key[: -len('weight')]}bias"
    return bias if bias in shapes else None


def known_shapes(keys: Collection[str] | Mapping[str, Shape]) -> dict[str, Shape]:
    """Keys with their shapes. Keys given without shapes get (), which every layer fits.

    The values of a state dict count as their shapes. Raises LycorisError for a model itself.
    """
    if isinstance(keys, Mapping):
        shapes = cast("Mapping[str, Shape]", keys)
        return {name: tuple(getattr(shape, "shape", shape)) for name, shape in shapes.items()}
    if isinstance(keys, str) or not isinstance(keys, Collection):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise LycorisError("E-model-shapes-needed", got=type(keys).__name__)
    return dict.fromkeys(keys, ())


def shared_fronts(names: Collection[str], words: int = WORDS) -> list[str]:
    """The prefixes of one to `words` words that more than half of the names share, shortest first.

    Tools put such a front before every name: DiffSynth-Studio's `pipe.dit.`, or `_orig_mod.` of a compiled
    model. No list of them can be complete, so a front is recognised from the names.
    Words end with a dot, or with an underscore if the name has no dots. A front includes its last separator.
    Each front extends the one before: more than half of the names cannot share two that differ.
    """
    fronts: list[str] = []
    sharing = list(names)
    while len(fronts) < words:
        known = fronts[-1] if fronts else ""
        longer = Counter(filter(None, (_longer(name, len(known)) for name in sharing)))
        front, count = longer.most_common(1)[0] if longer else ("", 0)
        if 2 * count <= len(names):
            break
        fronts.append(front)
        sharing = [name for name in sharing if name.startswith(front)]
    return fronts


def _longer(name: str, size: int) -> str:
    """The first `size` characters of a name and one more word; "" if there is none."""
    end = name.find("." if "." in name else "_", size) + 1
    return name[:end] if end < len(name) else ""


def is_of_encoder(front: str) -> bool:
    """Whether a front shows that the layers are a text encoder's."""
    return OF_ENCODER.search(front) is not None


def diffusers_component(shapes: Mapping[str, Shape]) -> tuple[str, str] | None:
    """The component of a pipeline that a model is, and the prefix of its keys.

    That is ("unet", "unet.") for the keys of a UNet with its prefix, and ("transformer", "") for those of a
    transformer without one. None for keys in another layout, even of a model that diffusers has too.
    """
    keys = [key for key in shapes if not key.startswith(PIPELINE_ENCODERS)]
    if not keys:
        return None
    component = next(
        (prefix for prefix in (UNET, TRANSFORMER) if all(key.startswith(f"{prefix}.") for key in keys)), None
    )
    front = f"{component}." if component else ""
    paths = {key[len(front) :]: shapes[key] for key in keys}
    if all(any(path.startswith(side) for path in paths) for side in UNET_SIDES):
        kind = UNET
    elif any(map(BLOCK_QUERY.match, paths)):
        kind = TRANSFORMER
    else:
        return None
    if component not in (None, kind) or recognise(
        {path.removesuffix(".weight"): s for path, s in paths.items()}
    ):
        return None
    return kind, front
