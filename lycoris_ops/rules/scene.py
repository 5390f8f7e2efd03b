"""What rules are about: the blocks of a model, and the layers of one adapter that meet it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Generic, NamedTuple, TypeVar

from ..names.blocks import Blocks, Named


class Value(NamedTuple):
    """What a line gives a layer."""

    number: float
    scales: bool = False
    """Whether the number multiplies what is in force, and does not take its place."""

    def after(self, before: float) -> float:
        return before * self.number if self.scales else self.number


Given = TypeVar("Given")


@dataclass(frozen=True)
class Outcome(Generic[Given]):
    """What a line, all rules or a schedule give the layers of an adapter."""

    of: Mapping[str, Given]
    """What each layer gets, by the layer's name."""
    notes: tuple[str, ...] = ()
    """Which reading was taken of lines with several, and what the file has no layer for."""
    idle: tuple[str, ...] = ()
    """Each pattern that matches nothing in the model, with what is near."""


@dataclass(frozen=True)
class Scene:
    """The blocks of a model, and the layers of an adapter that meet it."""

    blocks: Blocks
    layers: Mapping[str, Named]
    """The adapter's layers in the order of its file, each with its names in the model."""

    @cached_property
    def known(self) -> frozenset[str]:
        """Every name that means a layer of the model or everything within a module of it."""
        found: set[str] = set()
        for named in self.blocks.layers:
            found |= named.names
            for path in named.paths:
                found.update(accumulate(path.split("."), "{}.{}".format))
        return frozenset(found)
