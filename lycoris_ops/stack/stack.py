"""The stack: an ordered list of adapters with their strengths and rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ..adapters.adapter import Adapter
from ..errors import LycorisError
from ..names.dialects import Component
from .rules import Rules


@dataclass(frozen=True)
class Entry:
    """One adapter of a stack.

    `strength` multiplies its change of the diffusion model (0 is a no-op, negative subtracts),
    `strength_clip` its change of the text encoders and is `strength` where it is None.
    """

    adapter: Adapter
    strength: float = 1.0
    strength_clip: float | None = None
    rules: Rules | None = None

    def __post_init__(self) -> None:
        for value in (self.strength, self.strength_of("te")):
            if not math.isfinite(value):
                raise LycorisError(
                    "a strength must be a finite number", file=self.adapter.path, got=str(value)
                )

    def strength_of(self, part: Component | None) -> float:
        if part == "te" and self.strength_clip is not None:
            return self.strength_clip
        return self.strength

    @property
    def off(self) -> bool:
        """Whether both strengths are 0, so that nothing of the adapter is used."""
        return self.strength == 0.0 and self.strength_of("te") == 0.0


@dataclass(frozen=True)
class Stack:
    """Adapters that are applied together. Every one sees the base weight, so order does not matter."""

    entries: tuple[Entry, ...] = ()

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        object.__setattr__(self, "entries", tuple(entries))

    def __add__(self, other: Stack) -> Stack:
        return Stack(self.entries + other.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def with_rules(self, rules: Rules) -> Stack:
        """Every adapter of the stack under these rules too; rules already there are kept."""
        return Stack(
            replace(entry, rules=entry.rules.then(rules) if entry.rules else rules) for entry in self
        )
