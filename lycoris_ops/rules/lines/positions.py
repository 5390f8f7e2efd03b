"""`%default=1,base=1,in1-4=0.5,mid=0`: values for blocks by their position among the file's blocks.

The form comes from ComfyUI-Inspire-Pack: positions count from 1 in each family, `base` is for layers in no
block, and `default` for all other blocks. Unlike there, values can be negative.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import RuleError
from ...messages import phrase
from ..scene import Outcome, Scene, Value
from ..values import number
from . import Line

ORDER = 1
FAMILIES = ("in", "mid", "out", "double", "single", "layers", "blocks")
ITEM = re.compile(
    rf"\s*(default|base|(?:{'|'.join(FAMILIES)})(?:([0-9]{{1,6}})(?:-([0-9]{{1,6}}))?)?)\s*=(.*)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Positions(Line):
    """Values for blocks by family, first and last position; the last item that fits counts."""

    default: float
    base: float
    items: tuple[tuple[str, int, int, float], ...]

    def weigh(self, scene: Scene, _: int, /) -> Outcome[Value]:
        values: dict[str, Value] = {}
        families = {family: in_family(scene, family) for family in FAMILIES}
        for family, blocks in families.items():
            scene.check_time()
            for at, layers in enumerate(blocks, start=1):
                fitting = [v for name, low, high, v in self.items if name == family and low <= at <= high]
                value = Value(fitting[-1] if fitting else self.default)
                values.update(dict.fromkeys(layers, value))
        idle = tuple(
            f"{name}: the file has no such block"
            for name, low, high, _ in self.items
            if min(high, len(families[name])) < max(low, 1)
        )
        for layer in scene.layers:
            values.setdefault(layer, Value(self.base))
        note = "% by place among the blocks that the file has, counted from 1, as Inspire Pack"
        return Outcome(values, (note,), idle)


def read(text: str) -> Positions | None:
    if not text.lstrip().startswith("%"):
        return None
    column = text.index("%") + 2
    default, base, items = 1.0, None, list[tuple[str, int, int, float]]()
    for item in text.lstrip()[1:].split(","):
        match = ITEM.fullmatch(item)
        if not match:
            raise RuleError(
                "E-rule-percent-part", got=item.strip() or phrase("R-nothing-between-two-commas")
            ).at(column)
        try:
            value = number(match[4].strip())
        except RuleError as error:
            raise error.at(column + match.start(4)) from None
        name = re.sub(r"[\d-]+$", "", match[1].lower())
        if name == "default":
            default = value
        elif name == "base":
            base = value
        else:
            low = int(match[2] or 1)
            items.append((name, low, int(match[3] or (match[2] or 2**31)), value))
        column += len(item) + 1

    return Positions(text.strip(), default, default if base is None else base, tuple(items))


def in_family(scene: Scene, family: str) -> list[list[str]]:
    """The adapter's layers in each block of a family, by block number."""
    layers: dict[int, list[str]] = {}
    for layer, named in scene.layers.items():
        count = named.number_in(family) if family in named.names else None
        if count is not None:
            layers.setdefault(count, []).append(layer)
    return [layers[count] for count in sorted(layers)]
