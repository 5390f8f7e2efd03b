"""What a file in `methods` declares: how to merge the changes that several adapters make to one weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..changes.forms import Additive
from ..errors import LycorisError
from .deltas import Deltas

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Option:
    """A setting of a method: a number from `low` to `high`, or one of `choices`."""

    name: str
    default: float | str
    what: str
    """What it does, and at which value it does nothing."""
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()

    def check(self, value: object) -> None:
        """Raise LycorisError for a value that it cannot have."""
        if self.choices:
            if value not in self.choices:
                raise LycorisError(
                    f"the option `{self.name}` has no such value",
                    got=str(value),
                    expected=", ".join(self.choices),
                )
        elif (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not self.low <= value <= self.high
        ):
            raise LycorisError(
                f"the option `{self.name}` is out of range",
                got=str(value),
                expected=f"a number from {self.low:g} to {self.high:g}",
            )


@dataclass(frozen=True)
class MergeMethod:
    """A way of merging."""

    name: str
    merge: Callable[[Deltas, Options], Sequence[Additive]]
    """Returns the merged change of one weight."""
    source: str
    """The paper with its equation or algorithm, or where else the formula is from."""
    factors: bool
    """Whether small factors give a result in small factors, without forming a dense matrix."""
    options: tuple[Option, ...] = ()
    adapters: tuple[int, float] = (1, math.inf)
    """The least and the most adapters that it takes."""
    ordered: bool = False
    """Whether it matters which adapter comes first."""
    alone: Callable[[float, Options], float] | None = None
    """Maps the strength of a weight's only adapter to the factor of its change. None where the result is no
    multiple of the change."""
    parts: Callable[[Deltas, Options], Sequence[Sequence[Additive]]] | None = None
    """Returns each adapter's part at strength 1, where the result is the sum of the parts times the
    strengths."""

    def checked(self, options: Options) -> dict[str, Any]:
        """All options, with defaults for those that are not given. Raises LycorisError for others."""
        known = {option.name: option for option in self.options}
        for name, value in options.items():
            if name not in known:
                raise LycorisError(
                    f"the merge method {self.name} has no option `{name}`",
                    expected=", ".join(known) or "no options",
                )
            known[name].check(value)
        return {name: options.get(name, option.default) for name, option in known.items()}
