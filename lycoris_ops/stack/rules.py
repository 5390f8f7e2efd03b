"""Block rules: factors for the strength of an adapter in the blocks or layers that patterns match."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import RuleError


@dataclass(frozen=True)
class Rule:
    """One block rule: in layers that `pattern` matches, the strength is multiplied by `weight`."""

    pattern: str
    weight: float

    def matches(self, names: Collection[str]) -> bool:
        """Whether the pattern matches any of a layer's names, see `Target.names`."""
        # Not fnmatch, which on Windows takes / for \ and ignores case.
        return any(fnmatchcase(name, self.pattern) for name in names)

    def __str__(self) -> str:
        return f"{self.pattern} = {self.weight:g}"


@dataclass(frozen=True)
class Rules:
    """Block rules in stages. Within a stage the last rule that matches a layer counts.

    The weights of the stages are multiplied. A layer that no rule matches has the weight 1.
    """

    stages: tuple[tuple[Rule, ...], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Rules:
        """Rules of one stage from lines `pattern = weight`. Blank lines, and all after a #, are ignored.

        A pattern is a glob (*, ?, [abc]) on the host's layer names
        (`diffusion_model.input_blocks.4.1.*attn2*`) and on block names (`in.4`, `mid`, `out.*`, `te`).
        Raises RuleError, with the line's number, for a line that is not of this form or has no finite weight.
        """
        rules: list[Rule] = []
        for number, line in enumerate(text.splitlines(), start=1):
            content = line.partition("#")[0].strip()
            if content:
                rules.append(_parse_line(content, number))
        return cls((tuple(rules),)) if rules else cls()

    def then(self, other: Rules | None) -> Rules:
        """The stages of both, so that their weights are multiplied."""
        return Rules(self.stages + other.stages) if other else self

    def weight(self, names: Collection[str]) -> float:
        """The weight of a layer with these names, see `Target.names`."""
        total = 1.0
        for stage in self.stages:
            for rule in reversed(stage):
                if rule.matches(names):
                    total *= rule.weight
                    break
        return total

    def all(self) -> tuple[Rule, ...]:
        """All rules of all stages, in order."""
        return tuple(rule for stage in self.stages for rule in stage)

    def __str__(self) -> str:
        return " | ".join("; ".join(str(rule) for rule in stage) for stage in self.stages)


def _parse_line(content: str, number: int) -> Rule:
    pattern, equals, value = (part.strip() for part in content.rpartition("="))
    try:
        weight = float(value)
    except ValueError:
        # Refused below, like `nan` and `inf` in the text.
        weight = math.nan
    if not equals or not pattern or not math.isfinite(weight):
        raise RuleError(
            f"line {number} of the block rules is not understood",
            got=content,
            expected="pattern = weight, such as: in.4 = 0.5",
        )
    return Rule(pattern, weight)
