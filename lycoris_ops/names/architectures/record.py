"""The record of an architecture. Each has one file in this folder."""

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
        """See `Family.likeness`. counts: how many blocks each list has at least."""
        lacking = sum(max(0, count - self.blocks[name]) for name, count in counts.items())
        if lacking:
            return 1 / (1 + lacking)
        return 2 if any(count == self.blocks[name] for name, count in counts.items()) else 1


@dataclass(frozen=True)
class Family:
    """A family of models, and how to recognise adapters for it. Layers are not matched by it.

    All regular expressions but `said` match the beginning of a layer's path in the host, in diffusers and in
    kohya, with underscores for dots.
    """

    name: str
    """Its name in messages."""
    said: str = ""
    """A regular expression for its name in an adapter's metadata, in small letters."""
    mark: str = ""
    """Layers that only this family has."""
    like: str = ""
    """Layers that it shares with other families."""
    unlike: str = ""
    """Layers that rule it out: other families have them beside those of `like`."""
    width: tuple[str, int] | None = None
    """Layers, and the number of inputs that only this family has there."""
    sizes: tuple[Size, ...] = ()
    lists: Mapping[str, str] = field(default_factory=dict[str, str])
    """The layers in lists of blocks, by the short name of the list. The group is the block's number."""
    experts: bool = False
    """Whether some of its models are pairs, for high and for low noise, with an adapter for each."""

    def likeness(self, layers: Mapping[str, Shape]) -> float:
        """How likely a model or an adapter with these layers belongs to this family.

        3: it has layers of this family alone. 2: it has shared layers, up to the last block of one of the
        family's lists. 1: it has shared layers, and no more blocks than the family. Less than 1: it has more
        blocks, and each further one lowers the value. 0: it has none of these layers, or one that rules the
        family out.
        """

        def has(expression: str) -> bool:
            return bool(expression) and any(map(re.compile(expression).match, layers))

        if has(self.mark) or (self.width and _width(self.width[0], layers) == self.width[1]):
            return 3
        if not has(self.like) or has(self.unlike):
            return 0
        if not self.lists:
            return 1
        counts = {name: _count(expression, layers) for name, expression in self.lists.items()}
        return max(size.likeness(counts) for size in self.sizes)


def _width(expression: str, layers: Mapping[str, Shape]) -> int:
    """The inputs of the first layer that matches and whose shape is known; 0 for none."""
    compiled = re.compile(expression)
    return next((shape[1] for path, shape in layers.items() if len(shape) > 1 and compiled.match(path)), 0)


def _count(expression: str, layers: Mapping[str, Shape]) -> int:
    """The highest number of a block, counted from 1; 0 where no layer matches."""
    compiled = re.compile(expression)
    return max((int(match[1]) + 1 for match in map(compiled.match, layers) if match), default=0)


@dataclass(frozen=True)
class Vector:
    """A published vector of block weights: the blocks that its numbers are for. Its length identifies it.

    The tables are those of sd-webui-lora-block-weight (`scripts/lora_block_weight.py`), which supermerger
    (`pluslora.py`) has too.
    """

    title: str
    blocks: tuple[tuple[str, ...], ...]
    """The short names of the blocks that each number is for."""
    lists: Mapping[str, int]
    """The lists of blocks that the model must have, with the number of blocks of each."""


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
"""The tokens of a layer. A place is a position in the picture.

- `places`: those of the picture, perhaps followed by those of reference pictures.
- `level`: those of the picture at one of the sizes of a UNet.
- `level, text`: these, then those of the text.
- `text, places` and `places, text`: those of the text before or after those of the picture.
- `text`: at no place, such as the tokens of text or sound, or the embedding of the time.
- `for places`: at no place, but used place by place: the keys and values of a cross-attention.
- `for places, in turn`: these, in an attention whose keys and values cannot have a larger batch than its
  queries.
"""


Signal = Literal["video", "audio"]


@dataclass(frozen=True)
class Architecture:
    """All that is known of one architecture."""

    layouts: tuple[Layout, ...] = ()
    """The layouts of its models."""
    aside: Mapping[str, str] = field(default_factory=dict[str, str])
    """Layers of its blocks that are not trained by default, with the reasons.

    They are paths with `*` for a number, and include all that is below.
    """
    lists: Mapping[str, str] = field(default_factory=dict[str, str])
    """Short names of its lists of blocks, where these cannot be derived from the lists' paths."""
    families: tuple[Family, ...] = ()
    presets: Mapping[str, str] = field(default_factory=dict[str, str])
    """Block rules by name, beside those derived from the sizes of the families."""
    order: int = 100
    """Its position in the list of block presets, the most usual models first."""
    vectors: tuple[Vector, ...] = ()
    tokens: Mapping[str, Tokens] = field(default_factory=dict[str, Tokens])
    """The tokens of its layers, by paths as in `aside`; the first that fits counts. All other layers have
    `text`. Empty where they are not known."""
    signals: Mapping[str, Signal] = field(default_factory=dict[str, "Signal"])
    """Which layers make the picture and which the sound, by paths as in `aside`."""
