"""`in.1-4 = 0.5`: patterns, and the value for layers that any of them matches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import RuleError
from ...names.blocks import Named
from ..patterns import Pattern, assigned, unmet
from ..scene import Outcome, Scene, Value
from ..values import EXPECTED, Amount
from . import Line

ORDER = 2


@dataclass(frozen=True)
class Assignment(Line):
    """A value for the layers that any of the patterns matches."""

    patterns: tuple[Pattern, ...]
    amount: Amount

    def weigh(self, scene: Scene, _: int, /) -> Outcome[Value]:
        met = {
            layer: named
            for layer, named in scene.layers.items()
            if any(pattern.matches(scene, named) for pattern in self.patterns)
        }
        positions = self._places(scene, met.values()) if self.amount.is_ramp else {}
        values = {
            layer: Value(self.amount.at(positions.get(named.block, 0), len(positions)), self.amount.scales)
            for layer, named in met.items()
        }
        return Outcome(values, *unmet(self.patterns, scene))

    def _places(self, scene: Scene, met: Iterable[Named]) -> dict[str, int]:
        """The blocks that a ramp runs over, each with its position. They include blocks of the model that the
        adapter lacks. The adapter's layers count too: they can be `attn.q` where the model has only
        `attn.qkv`.
        """
        own = {named.block for named in met}
        blocks = (
            block
            for block, members in scene.blocks.members.items()
            if block in own or any(p.matches(scene, n) for n in members for p in self.patterns)
        )
        return {block: position for position, block in enumerate(blocks)}


def read(text: str) -> Assignment | None:
    assignment = assigned(text)
    if assignment is None:
        return None
    patterns, left, right = assignment
    if not patterns:
        raise RuleError("E-rule-without-pattern", got=text.strip()).at(text.index("=") + 1)
    try:
        amount = Amount.of(right)
    except RuleError as error:
        # Point to the first letter of the value, or to the column after the = if it has no value.
        column = len(left) + 2 + (len(right) - len(right.lstrip()) if right.strip() else 0)
        error.values.update(got=right.strip() or "nothing", expected=EXPECTED)
        raise error.at(column) from None
    return Assignment(f"{left.strip()} = {right.strip()}", patterns, amount)
