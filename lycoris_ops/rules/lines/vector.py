"""`1,0,0,0,1,1,1,...` or `NAME:1,0,...`: one number for each block, as tools for block weights share them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import RuleError
from ...names.blocks import Named
from ..layouts import INDEXED, LAYOUTS, POSITIONAL, POSITIONED, TITLES, UNLISTED, Layout
from ..scene import Outcome, Scene, Value
from ..values import number

ORDER = 4
RANDOM = {"indexed": {"r": (0.0, 1.0), "u": (-0.5, 1.5)}, "positioned": {"r": (0.0, 3.0), "u": (-1.5, 1.5)}}
"""Between what a letter is drawn: as LBW does it in vectors by index, and Inspire in those by position."""
INPUTS = re.compile(r"([abx])(?:[-+].*)?", re.IGNORECASE)
STAND_FOR = {
    "a": "In the Inspire Pack A is an input of its node, and a is half of it",
    "b": "In the Inspire Pack B is an input of its node, and b is half of it",
    "x": "In LBW X is the number after x= in the prompt",
}
"""Letters that stand for what is not in a vector."""
SHORTEST = 4
"""Fewer numbers are no vector; the shortest that is published has 12."""


@dataclass(frozen=True)
class Vector:
    """Numbers for blocks: by index or by position, as the tool that is named or as the length tells."""

    text: str
    entries: tuple[tuple[str, ...], ...]
    """Each entry's numbers or letters; several are for the layers of the block in their order."""
    tool: str = ""

    def weigh(self, scene: Scene, seed: int, /) -> Outcome:
        readings = list(self._readings(scene, seed))
        if not readings:
            raise RuleError(
                f"a vector of {len(self.entries)} numbers fits neither the model nor the file",
                got=self.text,
                expected=" or ".join(_lengths(scene)) or "rules by name: no vector is known for this model",
            )
        first = readings[0]
        if any(other.values != first.values for other in readings[1:]):
            raise RuleError(
                f"a vector of {len(self.entries)} numbers has two readings, which differ",
                got=self.text,
                expected="its tool before it, as in lbw:1,0,... or inspire:1,0,...",
            )
        return first

    def _readings(self, scene: Scene, seed: int) -> Iterator[Outcome]:
        layout = LAYOUTS.get(len(self.entries))
        single = all(len(entry) == 1 for entry in self.entries)
        if layout and single and self.tool in ("", *INDEXED) and _fits(layout, scene):
            yield self._by_index(layout, scene, seed, self.tool or "lbw")
        for tool in POSITIONED:
            positions = by_position(scene, tool)
            if self.tool == tool or (not self.tool and len(positions) + 1 == len(self.entries)):
                yield self._by_position(positions, scene, seed, tool)
                return

    def _by_index(self, layout: Layout, scene: Scene, seed: int, tool: str) -> Outcome:
        drawn = self._drawn("indexed", seed, range(len(self.entries)))
        numbers = {name: drawn[place][0] for place, names in enumerate(layout.blocks) for name in names}
        values: dict[str, Value] = {}
        left: set[str] = set()
        for layer, named in scene.layers.items():
            listed = [numbers[name] for name in numbers if name in named.names or name == named.block]
            family = scene.blocks.all[named.block].family
            if listed:
                values[layer] = Value(listed[0])
            elif family in layout.families or family == "mid":
                values[layer] = Value(UNLISTED[tool])
                left.add(named.block)
        rest = f"; blocks that it does not list have {UNLISTED[tool]:g}: " + ", ".join(
            sorted(left, key=scene.places.__getitem__)
        )
        note = f"{len(self.entries)} numbers by index, as {TITLES[tool]} for {layout.title}"
        return Outcome(values, (note + (rest if left else "") + self._letters(drawn),))

    def _by_position(self, positions: Sequence[list[str]], scene: Scene, seed: int, tool: str) -> Outcome:
        # The first number is for the rest, and its letters are drawn last.
        drawn = self._drawn("positioned", seed, [*range(1, len(self.entries)), 0])
        values: dict[str, Value] = {}
        last = 1.0
        for place, layers in enumerate(positions, start=1):
            queue = list(drawn[place]) if place < len(drawn) else []
            for layer in layers:
                last = queue.pop(0) if queue else last
                values[layer] = Value(last)
        for layer in scene.layers:
            values.setdefault(layer, Value(drawn[0][0]))
        count = f"{len(self.entries)} numbers by position, as {TITLES[tool]}"
        each = f"the first for what is in no block, then one for each of the file's {len(positions)} blocks"
        return Outcome(values, (f"{count}: {each}{self._letters(drawn)}",))

    def _drawn(self, kind: str, seed: int, order: Sequence[int]) -> list[tuple[float, ...]]:
        chance = np.random.RandomState(seed % 2**31)
        found: list[tuple[float, ...]] = [()] * len(self.entries)
        for place in order:
            found[place] = tuple(
                round(float(chance.uniform(*RANDOM[kind][word])), 2) if word in RANDOM[kind] else float(word)
                for word in self.entries[place]
            )
        return found

    def _letters(self, drawn: Sequence[tuple[float, ...]]) -> str:
        if not any(word in "ru" for entry in self.entries for word in entry):
            return ""
        return "; drawn: " + ",".join(" ".join(f"{value:g}" for value in values) for values in drawn)

    def __str__(self) -> str:
        return self.text


def by_position(scene: Scene, tool: str) -> list[list[str]]:
    """The adapter's layers in each of its blocks, in the order in which a tool counts these."""
    return [layers for family in POSITIONAL[tool] for layers in in_family(scene, family)]


def in_family(scene: Scene, family: str) -> list[list[str]]:
    """The adapter's layers in each of the blocks that it has of one family, by number."""
    found: dict[int, list[str]] = {}
    for layer, named in scene.layers.items():
        count = _number(family, named)
        if count is not None:
            found.setdefault(count, []).append(layer)
    return [found[count] for count in sorted(found)]


def _number(family: str, named: Named) -> int | None:
    if family not in named.names:
        return None
    start = f"{family}."
    ends = (name.removeprefix(start) for name in named.names if name.startswith(start))
    return next((int(end) for end in ends if end.isdigit()), None)


def _fits(layout: Layout, scene: Scene) -> bool:
    return all(
        (numbers := scene.blocks.numbers(family)) and numbers[-1] + 1 == count
        for family, count in layout.families.items()
    )


def _lengths(scene: Scene) -> Iterator[str]:
    for length, layout in LAYOUTS.items():
        if _fits(layout, scene):
            yield f"{length} (LBW, {layout.title})"
    for tool in POSITIONED:
        if positions := by_position(scene, tool):
            yield f"{len(positions) + 1} ({TITLES[tool]}, this file)"
            return


def read(text: str) -> Vector | None:
    name, colon, numbers = text.rpartition(":")
    parts = numbers.split(",")
    if len(parts) < SHORTEST or text.count(":") > 1 or (name and not name.strip()):
        return None
    entries: list[tuple[str, ...]] = []
    place = len(name) + len(colon) + 1
    for part in parts:
        words = tuple(part.lower().split())
        indent = len(part) - len(part.lstrip())
        for word in part.split() or ("",):
            if word.lower() not in ("r", "u"):
                _checked(word, place + indent)
        entries.append(words)
        place += len(part) + 1
    tool = name.strip().lower()
    return Vector(text.strip(), tuple(entries), tool if tool in TITLES else "")


def _checked(word: str, column: int) -> None:
    try:
        number(word)
    except RuleError:
        if letter := INPUTS.fullmatch(word):
            raise RuleError(
                "a vector has a letter for a number that is not in it",
                got=word,
                expected="the number itself in its place",
                hint=STAND_FOR[letter[1].lower()],
            ).at(column) from None
        raise RuleError(
            "a vector has something that is no number",
            got=re.sub(r"\s+", " ", word) or "nothing between two commas",
            expected="numbers, or R and U for random ones, with commas between them",
        ).at(column) from None
