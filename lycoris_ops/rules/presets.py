"""Named block rules: the built-in ones, and those in a user's text file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from ..errors import LycorisError, RuleError
from ..names.architectures import ARCHITECTURES
from ..names.architectures.record import Size
from .lines.vector import TOOLS
from .rules import Rules, without_comment

THIRDS = ("FRONT", "MID", "TAIL")
LISTS = {"double": "-DBL", "single": "-SGL"}
"""The word for a list of blocks in the names of presets, where a model has several."""


def _thirds(size: Size) -> dict[str, str]:
    """The rules that keep a third of a list of blocks, by name."""
    rules: dict[str, str] = {}
    for name, count in size.blocks.items() if size.preset else ():
        ends = [round(count * third / 3) for third in range(4)]
        for word, (first, end) in zip(THIRDS, pairwise(ends), strict=True):
            title = f"{size.preset}{LISTS[name] if len(size.blocks) > 1 else ''}-{word}"
            rules[title] = f"{' '.join(size.blocks)} = 0\n{name}.{first}-{end - 1} = 1"
    return rules


def _named() -> dict[str, str]:
    rules = {"ALL": "* = 1", "NONE": "* = 0", "ALL0.5": "* = 0.5"}
    for record in ARCHITECTURES.values():
        rules |= record.presets
    for record in sorted(ARCHITECTURES.values(), key=lambda record: record.order):
        for family in record.families:
            for size in family.sizes:
                rules |= _thirds(size)
    return rules


BLOCK_PRESETS: Mapping[str, str] = _named()
"""Rules by name. All but the first three leave layers in no block, and text encoders, unchanged."""
HEADING = re.compile(r"\[(.*?)\](?:\s+#.*)?")
VECTOR = re.compile(r"([^\s:#\[%][^:]*):(.+)")
NAMED_VECTOR = re.compile(r"([^\s:#\[%=][^:=]*):([^:=]*,[^:=]*)")
WORD = re.compile(r"[^\s:=,#\[\]]+")
"""The first word of a line of no known form: it may be meant as a preset's name."""


@dataclass(frozen=True)
class PresetFile:
    """The presets in a user's file."""

    presets: Mapping[str, str]
    """Rules by name."""
    faults: tuple[str, ...] = ()
    """Each fault with its line. Other presets are not affected."""
    broken: Mapping[str, str] = field(default_factory=dict[str, str])
    """The presets that cannot be read, by name, each with its fault."""


def read_presets(text: str, file: str) -> PresetFile:
    """The presets of a text: a heading `[name]` with rules below it, or lines `NAME:1,0,0,...`.

    Lines below a heading are as in `Rules.parse`, and may name the presets before them. They end at the next
    heading, or at a line `NAME:1,0,0,...` that comes after an empty line and whose NAME no tool uses. `file`
    is the name of the file, for the faults.
    """
    presets: dict[str, str] = {}
    broken: dict[str, str] = {}
    faults: list[str] = []
    name, start, body = "", 0, list[str]()

    def fail(fault: str, name: str | None = None) -> None:
        faults.append(f"{file}{fault}")
        if name:
            broken[name] = faults[-1]
            presets.pop(name, None)

    def add(name: str, rules: str, known: Mapping[str, str]) -> None:
        """Keep a preset, or its fault. Empty lines before the rules keep the file's line numbers."""
        try:
            if not Rules.parse(rules, known, broken=broken):
                raise RuleError("E-preset-without-rules")
        except LycorisError as error:
            fail(f": {name}: {error}", name)
            return
        lines = rules.strip("\n").splitlines()
        # Insert the lines of presets that it names: these may be redefined further down.
        presets[name] = "\n".join(known.get(without_comment(line).strip(), line) for line in lines).strip()
        broken.pop(name, None)

    def close() -> None:
        if name:
            add(name, "\n" * start + "\n".join(body), {**BLOCK_PRESETS, **presets})

    for number, raw in enumerate(text.lstrip("\ufeff").splitlines(), start=1):
        line = raw.strip()
        if heading := HEADING.fullmatch(line):
            close()
            name, start, body = heading[1].strip(), number, []
            if not name:
                fail(f", line {number}: a heading has no name")
            continue
        if name and body and not body[-1].strip() and _is_preset(line):
            close()
            name = ""
        if name:
            body.append(raw)
        elif line and not line.startswith("#"):
            if vector := VECTOR.fullmatch(line):
                # Padded, so that faults name the file's line and column.
                before = raw.index(":") + 1
                add(vector[1].strip(), "\n" * (number - 1) + " " * before + raw[before:], {})
            else:
                meant = WORD.match(line)
                fail(f", line {number}: it is neither [name] nor NAME:1,0,0,...", meant and meant[0])
    close()
    return PresetFile(presets, tuple(faults), broken)


def _is_preset(line: str) -> bool:
    """Whether a line is a vector with a name of its own, not with a tool's."""
    vector = NAMED_VECTOR.fullmatch(line)
    return vector is not None and vector[1].strip().lower() not in TOOLS
