"""Block rules: which weight each block or layer of an adapter gets."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import RuleError


@dataclass(frozen=True)
class Rule:
    """One line: layers that `pattern` matches get `weight`."""

    pattern: str
    weight: float

    def matches(self, names: Collection[str]) -> bool:
        return any(fnmatchcase(name, self.pattern) for name in names)

    def __str__(self) -> str:
        return f"{self.pattern} = {self.weight:g}"


@dataclass(frozen=True)
class Rules:
    """Stages of rules. In a stage the last matching rule counts; the stages' weights multiply.

    A layer that no rule matches keeps the weight 1.
    """

    stages: tuple[tuple[Rule, ...], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Rules:
        """Read `pattern = weight` lines; blank lines and what follows a # are passed over.

        A pattern is a glob (*, ?, [abc]) on the host's layer names
        (`diffusion_model.input_blocks.4.1.*attn2*`) and on block names (`in.4`, `mid`, `out.*`, `te`).
        Raises RuleError naming the line.
        """
        rules: list[Rule] = []
        for number, line in enumerate(text.splitlines(), start=1):
            content = line.partition("#")[0].strip()
            if content:
                rules.append(_parse_line(content, number))
        return cls((tuple(rules),)) if rules else cls()

    def then(self, other: Rules | None) -> Rules:
        """Both, one after the other: their weights multiply."""
        return Rules(self.stages + other.stages) if other else self

    def weight(self, names: Collection[str]) -> float:
        """The weight of a layer with these names."""
        total = 1.0
        for stage in self.stages:
            for rule in reversed(stage):
                if rule.matches(names):
                    total *= rule.weight
                    break
        return total

    def all(self) -> tuple[Rule, ...]:
        """Every rule, in order."""
        return tuple(rule for stage in self.stages for rule in stage)

    def __str__(self) -> str:
        return " | ".join("; ".join(str(rule) for rule in stage) for stage in self.stages)


def _parse_line(content: str, number: int) -> Rule:
    pattern, equals, value = (part.strip() for part in content.rpartition("="))
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not equals or not pattern or not math.isfinite(weight):
        raise RuleError(
            f"line {number} of the block rules is not understood",
            got=content,
            expected="pattern = weight, such as: in.4 = 0.5",
        )
    return Rule(pattern, weight)
