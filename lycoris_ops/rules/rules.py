"""Block rules: lines of text that name blocks or layers, and factors for an adapter's strength there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..discovery import discover
from ..errors import RuleError
from ..expressions import of_one_text
from . import lines
from .lines import Line
from .patterns import EXPRESSION
from .scene import Outcome, Scene

FORMS: list[Callable[[str], Line | None]] = [
    form.read for form in sorted(discover(lines.__name__), key=lambda form: form.ORDER)
]
"""The forms of a line, in the order in which they are tried."""
EXPECTED = "pattern = value such as in.4 = 0.5, a vector such as 1,0,0,..., or the name of a preset"
NESTED = 8
"""How deep presets may name presets."""
MOST_TEXT = 1 << 16
"""The most characters of a text. A line for each of the 800 layers of SDXL needs about 60,000."""
MOST_LINES = 1 << 12
"""The most lines of a text, those of its presets included."""
BEGUN = re.compile(rf"\s*(?:not\s+)?{EXPRESSION}", re.IGNORECASE)
"""Matches the start of a line with a regular expression, up to that expression's end."""


class RuleStage(NamedTuple):
    """Lines, where later ones win, and the seed of their random letters."""

    lines: tuple[Line, ...]
    seed: int


@dataclass(frozen=True)
class Rules:
    """Block rules in stages. The weights of all stages are multiplied.

    Within a stage each line gives a value to the layers that it matches, or scales their value; later lines
    win. A layer that no line matches has the weight 1.
    """

    stages: tuple[RuleStage, ...] = ()

    @classmethod
    @of_one_text()
    def parse(
        cls,
        text: str,
        presets: Mapping[str, str] | None = None,
        *,
        broken: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> Rules:
        """Rules of one stage from the lines of a text. Blank lines are ignored, and so is all text after a #
        outside a regular expression.

        A line is one of

        - `pattern = value`: patterns as in `Pattern`, with spaces or commas between several; the value is a
          number, `off`, `*0.5` for a factor on the earlier value, or `0.2..1.0` for a ramp over the blocks;
        - `1,0,0,...` or `NAME:1,0,0,...`: a vector of sd-webui-lora-block-weight, read by its length;
        - `%default=1,in1-4=0.5`: values by the position of a block among the file's blocks;
        - `BLOCKS:WORDS:value`: layers of some blocks with some word in their names;
        - the name of one of the presets, which stands for its lines.

        `broken` are presets that cannot be read, each with its fault.

        Raises RuleError for any other line, with its number and the column, for the name of a broken preset,
        and for more than `MOST_TEXT` characters or `MOST_LINES` lines.
        """
        check_length(text, "the block rules are")
        rules = tuple(_lines(text, presets or {}, broken or {}, NESTED))
        return cls((RuleStage(rules, seed),) if rules else ())

    def then(self, other: Rules | None) -> Rules:
        """The stages of both, so that their weights are multiplied."""
        return Rules(self.stages + other.stages) if other else self

    def under(self, other: Rules) -> Rules:
        """The lines of both in one stage, in which those of `other` win. Each may have one stage at most."""
        stages = [*self.stages, *other.stages]
        lines = tuple(line for stage in stages for line in stage.lines)
        return Rules((RuleStage(lines, stages[-1].seed),)) if stages else self

    def on(self, scene: Scene) -> Outcome[float]:
        """The weight of each layer of an adapter, at its place in a model.

        Raises RuleError for a vector that does not fit the model, and for lines that take too long.
        """
        scene.begin()
        total = dict.fromkeys(scene.layers, 1.0)
        notes: list[str] = []
        idle: list[str] = []
        for stage in self.stages:
            weights = dict.fromkeys(scene.layers, 1.0)
            for line in stage.lines:
                scene.check_time()
                outcome = line.weigh(scene, stage.seed)
                for layer, value in outcome.of.items():
                    weights[layer] = value.after(weights[layer])
                notes += outcome.notes
                idle += outcome.idle
            for layer, weight in weights.items():
                total[layer] *= weight
        return Outcome(total, tuple(dict.fromkeys(notes)), tuple(dict.fromkeys(idle)))

    def __bool__(self) -> bool:
        return bool(self.stages)

    def __str__(self) -> str:
        return " | ".join("; ".join(map(str, stage.lines)) for stage in self.stages)


def _lines(text: str, presets: Mapping[str, str], broken: Mapping[str, str], depth: int) -> list[Line]:
    rules: list[Line] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        content = without_comment(raw).rstrip()
        if not content.strip():
            continue
        # Case matters: the host turns a missing text into "None", and NONE is a preset.
        name = content.strip()
        if name in broken:
            raise RuleError("E-rules-preset-unreadable", number=number, got=broken[name])
        if name in presets:
            if not depth:
                raise RuleError("E-presets-circular", got=name)
            rules += _lines(presets[name], presets, broken, depth - 1)
            _check_count(rules)
            continue
        try:
            line = next(filter(None, (read(content) for read in FORMS)), None)
            if line is None:
                column = len(content) - len(content.lstrip()) + 1
                raise RuleError("E-rule-malformed", got=content.strip(), expected=EXPECTED).at(column)
        except RuleError as error:
            raise RuleError(
                "E-rules-line",
                number=number,
                column=error.column,
                fault=error,
                got=content.strip(),
                expected=error.expected,
                hint=error.hint,
            ).at(error.column) from None
        rules.append(line)
        _check_count(rules)
    return rules


def _check_count(lines: list[Line]) -> None:
    if len(lines) > MOST_LINES:
        raise RuleError("E-rules-too-many-lines", most_lines=MOST_LINES)


def check_length(text: str, what: str) -> None:
    """Raise RuleError for a text of more than `MOST_TEXT` characters or `MOST_LINES` lines."""
    counts = (("characters", len(text), MOST_TEXT), ("lines", text.count("\n") + 1, MOST_LINES))
    for name, count, most in counts:
        if count > most:
            raise RuleError("E-rules-text-too-long", what=what, count=count, name=name, most=most)


def without_comment(line: str) -> str:
    """A line without its comment. A # within a regular expression begins no comment."""
    begun = BEGUN.match(line)
    start = line.find("#", begun.end() if begun else 0)
    return line if start < 0 else line[:start]
