"""The stack: an ordered list of adapters with their strengths and rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsFloat, cast

from ..changes.place import Mask, Where
from ..errors import LycorisError
from ..messages import phrase
from ..names.dialects import Component
from ..reading.adapter import Adapter
from ..rules.rules import Rules
from ..rules.schedule import Schedule


@dataclass(frozen=True)
class Entry:
    """One adapter of a stack.

    `strength` multiplies its change to the diffusion model: 0 changes nothing, and a negative strength
    subtracts. `strength_clip` does the same for the text encoders; None means `strength`. `rules` multiply
    both in each layer. `schedule` multiplies the strength of the diffusion model over the sampling. Text
    encoders run before that, so their strength is constant. `mask` multiplies the strength over the places of
    a picture, and `factors` for each picture of a batch.

    Raises LycorisError for a strength that is no finite number, and for a field of another type.
    """

    adapter: Adapter
    strength: float = 1.0
    strength_clip: float | None = None
    rules: Rules | None = None
    schedule: Schedule | None = None
    mask: Mask | None = None
    factors: tuple[float, ...] | None = None
    label: str = ""
    """The name in reports, such as the file with its folder; "" for the file name alone."""
    low_noise: Adapter | None = None
    """For a model of two experts, the adapter for the low-noise expert; `adapter` is then for the other one.
    None where one adapter is for both."""

    @property
    def name(self) -> str:
        return self.label or self.adapter.name

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The entry's adapter, or both adapters of a pair."""
        return (self.adapter,) if self.low_noise is None else (self.adapter, self.low_noise)

    def __post_init__(self) -> None:
        if not isinstance(self.adapter, Adapter):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise LycorisError("E-entry-adapter-unusable", got=type(self.adapter).__name__)
        factors: Any = () if self.factors is None else self.factors
        if not isinstance(factors, Sequence):
            raise LycorisError("E-entry-factors-unusable", file=self.adapter.path, got=repr(factors))
        for value in (self.strength, self.strength_of("te"), *cast("Sequence[object]", factors)):
            if not (isinstance(value, SupportsFloat) and math.isfinite(value)):
                raise LycorisError("E-entry-strength-unusable", file=self.adapter.path, got=repr(value))
        for name, kind in (("rules", Rules), ("schedule", Schedule), ("mask", Mask), ("low_noise", Adapter)):
            value = getattr(self, name)
            if not (value is None or isinstance(value, kind)):
                raise LycorisError(
                    "E-entry-part-unusable",
                    file=self.adapter.path,
                    name=name,
                    got=repr(value),
                    expected=kind.__name__,
                )

    def strength_of(self, component: Component | None) -> float:
        """The strength for a component of the model. An unknown one gets the diffusion model's."""
        if component == "te" and self.strength_clip is not None:
            return self.strength_clip
        return self.strength

    @property
    def where(self) -> Where | None:
        """Where, and for which pictures, the strength holds; None for the same everywhere."""
        if self.mask is None and self.factors is None:
            return None
        return Where(self.mask, self.factors)

    @property
    def off(self) -> bool:
        """Whether both strengths are 0, so that the adapter is not used."""
        return self.strength == 0.0 and self.strength_of("te") == 0.0


@dataclass(frozen=True)
class Stack:
    """Adapters that are applied together. Each one sees the base weight, so their order does not matter.

    Raises LycorisError for an entry that is no `Entry`.
    """

    entries: tuple[Entry, ...] = ()

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        # Written by hand to accept any iterable. The class is frozen, so it cannot assign `self.entries`.
        object.__setattr__(self, "entries", tuple(entries))
        for entry in self.entries:
            if not isinstance(entry, Entry):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise LycorisError("E-stack-entry-unusable", got=type(entry).__name__)

    @staticmethod
    def check(stack: Stack) -> None:
        """Raise LycorisError for anything else that is given in place of a stack."""
        if not isinstance(stack, Stack):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise LycorisError("E-stack-unusable", got=type(stack).__name__)

    def __add__(self, other: Stack) -> Stack:
        return Stack(self.entries + other.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def with_rules(self, rules: Rules) -> Stack:
        """The stack with these rules added to every adapter."""
        if not rules:
            return self
        return Stack(
            replace(entry, rules=entry.rules.then(rules) if entry.rules else rules) for entry in self
        )

    def with_schedule(self, schedule: Schedule) -> Stack:
        """The stack with this schedule added to every adapter."""
        return Stack(
            replace(entry, schedule=entry.schedule.then(schedule) if entry.schedule else schedule)
            for entry in self
        )

    def with_mask(self, mask: Mask) -> Stack:
        """The stack with this mask on every adapter. It is multiplied with masks that are already there."""
        # Equal masks get one object, so that their adapters are computed together.
        joined = {entry.mask: replace(mask, within=entry.mask) if entry.mask else mask for entry in self}
        return Stack(replace(entry, mask=joined[entry.mask]) for entry in self)

    def of_expert(self, *, low_noise: bool) -> Stack:
        """The stack for one of the two experts of a model: each entry has its adapter for that expert."""
        return Stack(
            entry
            if entry.low_noise is None
            else replace(entry, adapter=entry.low_noise, low_noise=None, label="")
            if low_noise
            else replace(entry, low_noise=None)
            for entry in self
        )

    def check_constant(self, purpose: str) -> None:
        """Raise LycorisError if a strength follows a schedule, or differs over places, pictures or experts.

        The message says that such a stack cannot `purpose`.
        """
        for entry in self:
            if entry.schedule:
                raise LycorisError(
                    "E-stack-strength-scheduled", file=entry.name, purpose=purpose, got=str(entry.schedule)
                )
            if entry.where:
                raise LycorisError(
                    "E-stack-strength-by-place",
                    file=entry.name,
                    purpose=purpose,
                    got="a mask" if entry.mask else phrase("R-strength-each-picture"),
                )
            if entry.low_noise is not None:
                raise LycorisError(
                    "E-stack-holds-pair", file=entry.name, purpose=purpose, name=entry.low_noise.name
                )
