"""What a dialect is: which prefixes and suffixes a tool writes around a layer's path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...maths.shapes import Rows

MEMBERS = ("weight", "bias")
"""Names of tensors inside of a module that PEFT adds to a layer, such as `lora_A.weight`.

In the state dict of a live model the adapter's name stands before them. It stands after the name of a tensor
that is in no such module.
"""

Component = Literal["unet", "te"]
"""The diffusion model ("unet", also where it is a transformer) or a text encoder."""


@dataclass(frozen=True)
class Prefix:
    """A prefix of layer names and the part of a model that it stands for."""

    text: str
    part: Component | None = None
    """None where the prefix does not say the part."""
    encoder: int | None = None
    """The number of the text encoder, counted from 1; 0 where the tool does not number it.

    None where the rest of the name says which it is, and for a diffusion model.
    """


@dataclass(frozen=True)
class Dialect:
    """One tool's way of writing the names of layers and of their tensors."""

    name: str
    prefixes: tuple[Prefix, ...]
    suffixes: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the tool writes, to the algorithms' own suffix, where the two differ."""
    recognises: Callable[[Mapping[str, object]], bool] | None = None
    """Whether a file with these keys is of this dialect; None where the prefix of each key tells it."""
    rename: Callable[[str], str] | None = None
    """From a key of a recognised file to one that consists of a prefix, a path and a known suffix."""
    enlarged: tuple[str, ...] = ()
    """Layers that enlarge their weight with zeros to their own shape, without a tensor that says so.

    These count in a recognised file only.
    """
    order: Callable[[str, int], tuple[Rows, ...]] | None = None
    """The rows of a layer in the model's order, as ranges of the rows in the file; () where that is the same.

    The arguments are the layer's name and its number of rows. It counts in a recognised file only. It raises
    LayerError for a number of rows that it cannot order.
    """
