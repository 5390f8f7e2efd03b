"""The record of an architecture: all that is known of it, in the one file that it has in this folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...maths.shapes import Shape
from .notation import Layout


@dataclass(frozen=True)
class Size:
    """The blocks of one size of a model."""

    blocks: Mapping[str, int]
    """How many blocks each of its lists has, by the short name of the list."""
    preset: str = ""
    """The start of the names of its block presets. Each preset keeps a third of a list. "" for no presets."""

    def likeness(self, counts: Mapping[str, int]) -> float:
        """See `Family.likeness`. counts: how many blocks of each list are known at least."""
        lacking = sum(max(0, count - self.blocks[name]) for name, count in counts.items())
        if lacking:
            return 1 / (1 + lacking)
        return 2 if any(count == self.blocks[name] for name, count in counts.items()) else 1


@dataclass(frozen=True)
class Family:
    """Models that adapters are made for, and what identifies them. No layer is matched by it.

    All but `said` are regular expressions at the beginning of a layer's path. The paths are those of the
    host, of diffusers and of kohya, with underscores for dots.
    """

    name: str
    """What messages call it."""
    said: str = ""
    """What it is called in an adapter's metadata, in small letters: a regular expression."""
    mark: str = ""
    """Layers that only this family has."""
    like: str = ""
    """Layers that it has and other families have too."""
    unlike: str = ""
    """Layers that rule it out: other families have them beside those of `like`."""
    width: tuple[str, int] | None = None
    """Layers, and the number of inputs that only this family has there."""
    sizes: tuple[Size, ...] = ()
    lists: Mapping[str, str] = field(default_factory=dict[str, str])
    """The layers in lists of blocks, by the short name of the list. The group is the number of the block."""
    experts: bool = False
    """Whether some of its models are two, one for high and one for low noise, with an adapter for each."""

    def likeness(self, layers: Mapping[str, Shape]) -> float:
        """How much speaks for this family, given the layers of a model or adapter.

        3: layers of its own. 2: layers that others have too, to the last block of one of its lists. 1: such
        layers, and no block more than it has. Less than 1: the more blocks it lacks, the less. 0: nothing.
        """

        def has(pattern: str) -> bool:
            return bool(pattern) and any(map(re.compile(pattern).match, layers))

        if has(self.mark) or (self.width and _width(self.width[0], layers) == self.width[1]):
            return 3
        if not has(self.like) or has(self.unlike):
            return 0
        if not self.lists:
            return 1
        counts = {name: _count(pattern, layers) for name, pattern in self.lists.items()}
        return max(size.likeness(counts) for size in self.sizes)


def _width(pattern: str, layers: Mapping[str, Shape]) -> int:
    """The inputs of the first layer that matches and whose shape is known; 0 for none."""
    found = re.compile(pattern)
    return next((shape[1] for path, shape in layers.items() if len(shape) > 1 and found.match(path)), 0)


def _count(pattern: str, layers: Mapping[str, Shape]) -> int:
    """The highest number of a block, counted from 1; 0 where no layer matches."""
    found = re.compile(pattern)
    return max((int(match[1]) + 1 for match in map(found.match, layers) if match), default=0)


@dataclass(frozen=True)
class Vector:
    """What the numbers of a published vector of block weights stand for. Its length tells which vector it is.

    The tables are those of sd-webui-lora-block-weight (`scripts/lora_block_weight.py`), which supermerger
    (`pluslora.py`) has too.
    """

    title: str
    blocks: tuple[tuple[str, ...], ...]
    """The short names of the blocks that each number is for."""
    lists: Mapping[str, int]
    """The lists of blocks that the model must have, with how many blocks each."""


BY_TOKENS = (0.5, 1.15, 256, 4096)
"""The schedule of FLUX.1, see `Training.shift`."""


@dataclass(frozen=True)
class Training:
    """How trainers train a model by default. The learning rate is for a scale (alpha / rank) of 1.

    The sources are the defaults and examples of these trainers in 2026. Their learning rates are for scales
    of 1/16 to 1, so that they are a start and no more.
    """

    host: str
    """The host's class of the model, or of its configuration where that says more."""
    name: str
    source: str
    """Whose defaults these are."""
    distribution: str = "logit-normal"
    """How times are drawn, before the shift."""
    mean: float = 0.0
    shift: float | tuple[float, float, int, int] = 1.0
    """How far times move towards noise.

    Four numbers (low, high, few, many) are for a shift exp(mu) by the size of the picture: mu is low at `few`
    tokens and high at `many`, and linear between.
    """
    guidance: float | None = None
    """What a guidance embedding gets in a training; None for what the caption says, if it has one."""
    rank: int = 16
    lr: float = 1e-4
    preset: str = "attn-mlp"
    resolution: int = 1024
    """The side, in pixels, of a square picture of the size used in training."""
    told_size: bool = False
    """Whether the model is told the size of a picture and how it was cropped."""


Tokens = Literal[
    "places",
    "level",
    "level, text",
    "text, places",
    "places, text",
    "text",
    "for places",
    "for places, in turn",
]
"""What the tokens of a layer are.

- `places`: those of the picture, behind which reference pictures may stand.
- `level`: those of the picture at one of the sizes of a UNet.
- `level, text`: these, and behind them those of the text.
- `text, places` and `places, text`: those of the text before or behind those of the picture.
- `text`: at no place, such as the tokens of a text or of sound, and what is computed from the time.
- `for places`: at no place, but their output is used place by place: keys and values of a cross-attention.
- `for places, in turn`: these, where the host's attention takes no more keys and values than it has queries.
"""


Signal = Literal["video", "audio"]


@dataclass(frozen=True)
class Architecture:
    """All that is known of one architecture: what knows it reads it here."""

    layouts: tuple[Layout, ...] = ()
    """Its models by their layers."""
    aside: Mapping[str, str] = field(default_factory=dict[str, str])
    """Layers of its blocks that are not trained by default, with the reasons.

    They are paths with `*` for a number. What is below a path is meant too.
    """
    lists: Mapping[str, str] = field(default_factory=dict[str, str])
    """Short names of its lists of blocks, where the last word of a list's path makes none."""
    families: tuple[Family, ...] = ()
    presets: Mapping[str, str] = field(default_factory=dict[str, str])
    """Block rules by name, beside those that follow from the sizes of the families."""
    place: int = 100
    """Its place in the list of block presets, which begins with the most usual models."""
    vectors: tuple[Vector, ...] = ()
    trained: tuple[Training, ...] = ()
    tokens: Mapping[str, Tokens] = field(default_factory=dict[str, Tokens])
    """What the tokens of its layers are, by paths as in `aside`; the first that fits counts. Those of its
    other layers are `text`. Empty where it is not known."""
    signals: Mapping[str, Signal] = field(default_factory=dict[str, "Signal"])
    """Which layers make the picture and which the sound, by paths as in `aside`."""
    frame_rates: Mapping[str, float | None] = field(default_factory=dict[str, "float | None"])
    """Frames a second of the videos that the model makes, by the host's class of the model, or of its
    configuration where the class makes pictures too: those of the model's own examples, and of LTX-Video the
    host's. None is for a class that makes pictures."""
    boundaries: Mapping[str, float | None] = field(default_factory=dict[str, "float | None"])
    """For models with two experts: the time from which the one for high noise is used, as in the model's own
    code, by the host's class of the model or of its configuration. None is for a class without experts."""
