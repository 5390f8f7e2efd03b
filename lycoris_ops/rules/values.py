"""The right-hand side of a rule: numbers, factors, ramps and `off`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import RuleError

EXPECTED = "a number, off, *0.5 or 0.2..1.0"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
RAMP = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})", re.IGNORECASE)


@dataclass(frozen=True)
class Amount:
    """The value that a line gives to layers. It may run from the first matching block to the last."""

    first: float
    last: float
    scales: bool = False

    @classmethod
    def of(cls, text: str) -> Amount:
        """Parse a value. Raises RuleError for one that is not finite or not understood."""
        word = text.strip()
        if word.lower() == "off":
            return cls(0.0, 0.0)
        scales = word.startswith("*")
        body = word.removeprefix("*").strip()
        ramp = RAMP.fullmatch(body)
        low, high = (number(limit) for limit in ((ramp[1], ramp[2]) if ramp else (body, body)))
        return cls(low, high, scales)

    @property
    def is_ramp(self) -> bool:
        return self.first != self.last

    def at(self, position: int, count: int) -> float:
        """The value in block `position`, from 0, of `count`: linear from the first to the last."""
        if count < 2 or not self.is_ramp:
            return self.first
        return self.first + (self.last - self.first) * position / (count - 1)


def number(text: str) -> float:
    """A finite number. Raises RuleError for anything else."""
    value = float(text) if re.fullmatch(_NUMBER, text.strip(), re.IGNORECASE) else math.nan
    if not math.isfinite(value):
        raise RuleError("E-rule-value-not-understood", got=text, expected=EXPECTED)
    return value
