"""`1,0,0,0,1,1,1,...` or `NAME:1,0,...`: one number for each block, as shared for LBW."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import RuleError
from ...messages import phrase
from ...names.architectures import ARCHITECTURES
from ...names.architectures.record import Vector
from ..scene import Outcome, Scene, Value
from ..values import number
from . import Line

ORDER = 4
PUBLISHED = {len(layout.blocks): layout for record in ARCHITECTURES.values() for layout in record.vectors}
"""The published vectors by their length."""
OTHERS = ("inspire", "donut", "sd-scripts")
"""Tools whose vectors are for other blocks, or give unlisted blocks another weight."""
TOOLS = ("lbw", "supermerger", *OTHERS)
RANDOM = {"r": (0.0, 1.0), "u": (-0.5, 1.5)}
"""The range from which a letter's value is drawn, as in LBW."""
INPUT = re.compile(r"x(?:[-+].*)?", re.IGNORECASE)
"""A letter whose number LBW takes from `x=` in the prompt."""
SHORTEST = 4
"""The fewest numbers that are read as a vector. The shortest published vector has 12."""
BY_NAME = "Write the blocks by name, such as `in.1-4 = 0.5`; LyCORIS Blocks of a Model lists the names"


@dataclass(frozen=True)
class VectorLine(Line):
    """Numbers, or letters for random ones. Their count identifies their blocks."""

    entries: tuple[str, ...]

    def weigh(self, scene: Scene, seed: int, /) -> Outcome[Value]:
        layout = PUBLISHED.get(len(self.entries))
        if layout is None or not _fits(layout, scene):
            known = [f"{size} (LBW, {own.title})" for size, own in PUBLISHED.items() if _fits(own, scene)]
            raise RuleError(
                "E-vector-length-misfits",
                count=len(self.entries),
                got=self.text,
                expected=" or ".join(known) or phrase("R-rules-name-no-vector-known"),
                hint=BY_NAME,
            )
        drawn = self._drawn(seed)
        numbers = {name: drawn[index] for index, names in enumerate(layout.blocks) for name in names}
        values: dict[str, Value] = {}
        left: set[str] = set()
        for layer, named in scene.layers.items():
            listed = [numbers[name] for name in numbers if name in named.names or name == named.block]
            if listed:
                values[layer] = Value(listed[0])
            elif named.family in layout.lists or named.family == "mid":
                values[layer] = Value(0.0)
                left.add(named.block)
        note = f"{len(self.entries)} numbers by index, as LBW (sd-webui-lora-block-weight) for {layout.title}"
        if left:
            unlisted = ", ".join(sorted(left, key=scene.blocks.positions.__getitem__))
            note += f"; blocks that it does not list have 0: {unlisted}"
        return Outcome(values, (note + self._letters(drawn),))

    def _drawn(self, seed: int) -> list[float]:
        chance = np.random.RandomState(seed % 2**31)
        return [
            round(float(chance.uniform(*RANDOM[word])), 2) if word in RANDOM else float(word)
            for word in self.entries
        ]

    def _letters(self, drawn: Sequence[float]) -> str:
        if RANDOM.keys().isdisjoint(self.entries):
            return ""
        return "; drawn: " + ",".join(f"{value:g}" for value in drawn)


def _fits(layout: Vector, scene: Scene) -> bool:
    return all(
        (numbers := scene.blocks.numbers(family)) and numbers[-1] + 1 == count
        for family, count in layout.lists.items()
    )


def read(text: str) -> VectorLine | None:
    name, colon, numbers = text.rpartition(":")
    entries = numbers.split(",")
    if len(entries) < SHORTEST or text.count(":") > 1 or (name and not name.strip()):
        return None
    if name.strip().lower() in OTHERS:
        raise RuleError("E-vector-tool-unknown", got=text.strip(), hint=BY_NAME).at(1)
    column = len(name) + len(colon) + 1
    for entry in entries:
        word = entry.strip()
        if word.lower() not in RANDOM:
            _checked(word, column + len(entry) - len(entry.lstrip()))
        column += len(entry) + 1
    return VectorLine(text.strip(), tuple(entry.strip().lower() for entry in entries))


def _checked(word: str, column: int) -> None:
    try:
        number(word)
    except RuleError:
        if INPUT.fullmatch(word):
            raise RuleError("E-vector-letter-without-number", got=word).at(column) from None
        raise RuleError(
            "E-vector-entry-not-a-number",
            got=re.sub("\\s+", " ", word) or phrase("R-nothing-between-two-commas"),
        ).at(column) from None
