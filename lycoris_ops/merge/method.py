"""A merge method, declared by each file in `methods`: it merges adapters' changes to one weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..changes.forms import Additive
from ..errors import LycorisError
from ..messages import phrase
from .deltas import Deltas

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Option:
    """A setting of a method: a number from `low` to `high`, or one of `choices`."""

    name: str
    default: float | str
    what: str
    """What it does, and which value has no effect."""
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}={self.default} ({self.expected}): {self.what}"

    @property
    def expected(self) -> str:
        """The values that are allowed, in words."""
        return ", ".join(self.choices) or f"a number from {self.low:g} to {self.high:g}"

    def check(self, value: object) -> None:
        """Raise LycorisError for a value that is not allowed."""
        if self.choices:
            if value not in self.choices:
                raise LycorisError(
                    "E-merge-option-value-unknown", name=self.name, got=str(value), expected=self.expected
                )
        elif (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not self.low <= value <= self.high
        ):
            raise LycorisError(
                "E-merge-option-out-of-range", name=self.name, got=str(value), expected=self.expected
            )


@dataclass(frozen=True)
class MergeMethod:
    """A way of merging."""

    name: str
    merge: Callable[[Deltas, Options], Sequence[Additive]]
    """Computes the merged change of one weight."""
    source: str
    """The paper with its equation or algorithm, or another source of the formula."""
    factors: bool
    """Whether small factors are merged into small factors, without a dense matrix."""
    options: tuple[Option, ...] = ()
    adapters: tuple[int, float] = (1, math.inf)
    """The minimum and maximum number of adapters."""
    ordered: bool = False
    """Whether it matters which adapter comes first."""
    alone: Callable[[float, Options], float] | None = None
    """For a weight with one adapter: maps its strength to the factor of its change. None if the result is not
    a multiple of the change."""
    parts: Callable[[Deltas, Options], Sequence[Sequence[Additive]]] | None = None
    """If the result is a sum of parts times strengths: returns each adapter's part at strength 1."""

    def checked(self, options: Options) -> dict[str, Any]:
        """All options, with defaults for those not given.

        Raises LycorisError for an unknown option and for a value that is not allowed.
        """
        known = {option.name: option for option in self.options}
        for name, value in options.items():
            if name not in known:
                raise LycorisError(
                    "E-merge-option-unknown",
                    method=self.name,
                    option=name,
                    expected=", ".join(known) or phrase("R-no-options"),
                )
            known[name].check(value)
        return {name: options.get(name, option.default) for name, option in known.items()}
