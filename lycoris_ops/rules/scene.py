"""What rules act on: the blocks of a model, and the layers of an adapter in it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Generic, NamedTuple, TypeVar

from ..errors import RuleError
from ..names.blocks import Blocks, Named

SECONDS = 0.8
"""The most seconds of the processor that rules may take. Rules in use take some milliseconds."""


class Value(NamedTuple):
    """The value that a line gives a layer."""

    number: float
    scales: bool = False
    """Whether the number multiplies the earlier value, and does not replace it."""

    def after(self, before: float) -> float:
        return before * self.number if self.scales else self.number


Given = TypeVar("Given")


@dataclass(frozen=True)
class Outcome(Generic[Given]):
    """The values that a line, all rules or a schedule give the layers of an adapter."""

    of: Mapping[str, Given]
    """The value of each layer, by the layer's name."""
    notes: tuple[str, ...] = ()
    """How ambiguous lines were read, and which patterns match only layers that the file lacks."""
    idle: tuple[str, ...] = ()
    """Each pattern that matches nothing in the model, with similar names."""


@dataclass(frozen=True)
class Scene:
    """The blocks of a model, and the layers of an adapter in it."""

    blocks: Blocks
    layers: Mapping[str, Named]
    """The adapter's layers in the order of its file, each with its names in the model."""

    @cached_property
    def known(self) -> frozenset[str]:
        """Every name of a layer or a module of the model."""
        names: set[str] = set()
        for named in self.blocks.layers:
            names |= named.names
            for path in named.paths:
                names.update(accumulate(path.split("."), "{}.{}".format))
        return frozenset(names)

    _begun: list[float] = field(default_factory=lambda: [0.0], init=False, compare=False, repr=False)

    def begin(self) -> None:
        """Start the clock of `check_time`."""
        self._begun[0] = time.thread_time()

    def check_time(self) -> None:
        """Raise RuleError where the rules have taken more than `SECONDS`."""
        if time.thread_time() - self._begun[0] > SECONDS:
            raise RuleError("E-rules-too-slow", seconds=SECONDS, count=len(self.layers))
