"""`IN05-OUT05:attn2 to_out:0.5`: layers in one of the blocks, with one of the words in their names.

The form comes from sd-webui-lora-block-weight: blocks and words are separated by spaces, `NOT` before them
means all others, and an empty part means all. The value replaces the block's. Several of these can be on one
line, with commas between them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import RuleError
from ...names.blocks import Named
from ..patterns import EXPRESSION, MOST_PATTERNS, Pattern, atoms
from ..scene import Outcome, Scene, Value
from ..values import number
from . import Line

ORDER = 3
ENTRY = re.compile(rf"(\s*(?:NOT\s+)?{EXPRESSION}\s*|[^:]*):([^:]*):([^:,]*)(?:,|$)", re.IGNORECASE)
"""Blocks, words and a value. A regular expression in place of the blocks may hold colons."""


@dataclass(frozen=True)
class Element:
    """A value for layers by their blocks and the words in their names."""

    text: str
    blocks: tuple[Pattern, ...]
    other_blocks: bool
    words: tuple[str, ...]
    other_words: bool
    value: float

    def matches(self, scene: Scene, named: Named) -> bool:
        in_block = any(pattern.matches(scene, named) for pattern in self.blocks)
        # The last path is the one without a prefix.
        has_word = any(word in named.paths[-1] for word in self.words)
        return (not self.blocks or in_block is not self.other_blocks) and (
            not self.words or has_word is not self.other_words
        )


@dataclass(frozen=True)
class Elements(Line):
    """Each layer gets the value of the last element that matches it."""

    elements: tuple[Element, ...]

    def weigh(self, scene: Scene, _: int, /) -> Outcome[Value]:
        values: dict[str, Value] = {}
        notes: list[str] = []
        idle: list[str] = []
        for element in self.elements:
            scene.check_time()
            met = [layer for layer, named in scene.layers.items() if element.matches(scene, named)]
            values |= dict.fromkeys(met, Value(element.value))
            if met:
                continue
            if any(element.matches(scene, named) for named in scene.blocks.layers):
                notes.append(f"{element.text}: the file has no layer there")
            else:
                idle.append(f"{element.text}: the model has nothing there")
        return Outcome(values, tuple(notes), tuple(idle))


def read(text: str) -> Elements | None:
    elements: list[Element] = []
    end = 0
    while end < len(text):
        match = ENTRY.match(text, end)
        if not match:
            return None
        elements.append(_element(match))
        end = match.end()
        if len(elements) > MOST_PATTERNS:
            raise RuleError("E-rule-too-many-elements", most_patterns=MOST_PATTERNS).at(end)
    return Elements(text.strip(), tuple(elements)) if elements else None


def _element(match: re.Match[str]) -> Element:
    """One element. Raises RuleError, with the column in the line."""
    patterns: list[Pattern] = []
    other_blocks, named = _inverted(match[1])
    for offset, atom in atoms(named):
        try:
            patterns.append(Pattern.of(atom))
        except RuleError as error:
            raise error.at(match.start(1) + match[1].index(named) + offset + 1) from None
    other_words, wanted = _inverted(match[2])
    try:
        amount = number(match[3].strip())
    except RuleError as error:
        raise error.at(match.start(3) + 1) from None
    return Element(
        match[0].rstrip(",").strip(),
        tuple(patterns),
        other_blocks,
        tuple(atom.lower() for _, atom in atoms(wanted)),
        other_words,
        amount,
    )


def _inverted(text: str) -> tuple[bool, str]:
    first, *rest = text.split(maxsplit=1) or [""]
    return (True, "".join(rest).strip()) if first.upper() == "NOT" else (False, text.strip())
