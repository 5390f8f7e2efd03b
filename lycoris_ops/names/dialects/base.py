"""What a dialect is: which prefixes and suffixes a tool writes around a layer's path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Component = Literal["unet", "te"]
"""The diffusion model ("unet", also where it is a transformer) or a text encoder."""


@dataclass(frozen=True)
class Prefix:
    """A prefix of layer names and the part of a model that it stands for."""

    text: str
    part: Component | None = None
    """None where the prefix leaves it open."""
    encoder: int | None = None
    """Which text encoder, counted from 1; 0 for the only one, None where the rest of the name says it."""


@dataclass(frozen=True)
class Dialect:
    """One tool's way of writing names; `suffixes` maps what it writes to the algorithms' own names.

    `rename`, where given, turns a whole key of a file into one that prefixes and suffixes explain, and
    `recognises` tells from all keys of a file whether it is of this dialect, so that this is wanted.
    """

    name: str
    prefixes: tuple[Prefix, ...]
    suffixes: Mapping[str, str] = field(default_factory=dict[str, str])
    recognises: Callable[[Mapping[str, object]], bool] | None = None
    rename: Callable[[str], str] | None = None
    enlarged: tuple[str, ...] = ()
    """Layers that enlarge their weight with zeros to their own shape, without a tensor that says so."""
