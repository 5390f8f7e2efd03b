"""Named block rules: those that people know, and those that a user keeps in a text file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import LycorisError, RuleError
from .layouts import TOOLS
from .rules import Rules, without_comment

# The 17 numbers of LBW's presets (`scripts/lora_block_weight.py`) by name, so that they are for any UNet.
_UNET = {
    "INS": "in.1 in.2 in.4",
    "IND": "in.5 in.7 in.8",
    "INALL": "in.1 in.2 in.4 in.5 in.7 in.8",
    "MIDD": "in.5 in.7 in.8 mid out.3-6",
    "OUTD": "out.3-6",
    "OUTS": "out.7-11",
    "OUTALL": "out.3-11",
}
# Of the Inspire Pack's (`resources/lbw-preset.txt`), those that these do not say.
_UNET_VALUES = {
    "MIDD0.2": "in.8 = 0.2\nmid out.3 = 0.4\nout.4 = 0.2",
    "MIDD0.8": "in.7 = 0.5\nin.8 mid = 0.8\nout.3 = 0.4",
    "MOUT": "in.8 mid out.3-8 = 1\nout.9 = 0.5",
}
# As the Inspire Pack's, for LoRA on SDXL.
_SDXL = {"SDXL-INALL": "in.4 in.5 in.7 in.8", "SDXL-MIDALL": "mid", "SDXL-OUTALL": "out.0-5"}
_FAMILIES = {
    "FLUX-DBL": ("double single", "double", 19),
    "FLUX-SGL": ("double single", "single", 38),
    "SD3": ("joint", "joint", 24),
    "SD3.5-LARGE": ("joint", "joint", 38),
    "QWEN-IMAGE": ("transformer", "transformer", 60),
    "Z-IMAGE": ("layers", "layers", 30),
    "LUMINA2": ("layers", "layers", 26),
    "WAN-1.3B": ("blocks", "blocks", 30),
    "WAN-14B": ("blocks", "blocks", 40),
    "ANIMA": ("blocks", "blocks", 28),
    "KREA2": ("blocks", "blocks", 28),
    "MOCHI": ("blocks", "blocks", 48),
    "LTXV": ("transformer", "transformer", 28),
    "HUNYUAN-DBL": ("double single", "double", 20),
    "HUNYUAN-SGL": ("double single", "single", 40),
}
"""Of each architecture: the families of its blocks, the one that presets keep a third of, and its size."""
THIRDS = ("FRONT", "MID", "TAIL")


def _named() -> dict[str, str]:
    found = {"ALL": "* = 1", "NONE": "* = 0", "ALL0.5": "* = 0.5"}
    found |= {name: f"in mid out = 0\n{blocks} = 1" for name, blocks in _UNET.items()}
    found |= {name: f"in mid out = 0\n{lines}" for name, lines in _UNET_VALUES.items()}
    found |= {name: f"in mid out = 0\n{blocks} = 1" for name, blocks in _SDXL.items()}
    for name, (families, family, count) in _FAMILIES.items():
        ends = [round(count * third / 3) for third in range(4)]
        for third, word in enumerate(THIRDS):
            kept = f"{family}.{ends[third]}-{ends[third + 1] - 1}"
            found[f"{name}-{word}"] = f"{families} = 0\n{kept} = 1"
    return found


BLOCK_PRESETS: Mapping[str, str] = _named()
"""Rules by name. What is in no block, text encoders included, keeps its weight, except in the first three."""
HEADING = re.compile(r"\[(.*?)\](?:\s+#.*)?")
VECTOR = re.compile(r"([^\s:#\[%][^:]*):(.+)")
NAMED_VECTOR = re.compile(r"([^\s:#\[%=][^:=]*):([^:=]*,[^:=]*)")
WORD = re.compile(r"[^\s:=,#\[\]]+")
"""What a line of no form begins with: it may have been meant as the name of a preset."""


@dataclass(frozen=True)
class PresetFile:
    """What a user's file of presets holds."""

    presets: Mapping[str, str]
    """Rules by name."""
    faults: tuple[str, ...] = ()
    """Each fault with its place. Other presets are not affected."""
    broken: Mapping[str, str] = field(default_factory=dict[str, str])
    """The presets that cannot be read, by name, each with its fault."""


def read_presets(text: str, file: str) -> PresetFile:
    """The presets of a text: a heading `[name]` with rules below it, or lines `NAME:1,0,0,...`.

    Lines below a heading are as in `Rules.parse`, and may name the presets before them. They end at the next
    heading, or at a line `NAME:1,0,0,...` behind an empty one whose name is that of no tool. `file` is the
    name of the file, for the faults.
    """
    found: dict[str, str] = {}
    broken: dict[str, str] = {}
    faults: list[str] = []
    name, start, body = "", 0, list[str]()

    def fail(fault: str, name: str | None = None) -> None:
        faults.append(f"{file}{fault}")
        if name:
            broken[name] = faults[-1]
            found.pop(name, None)

    def add(name: str, rules: str, known: Mapping[str, str]) -> None:
        """Keep a preset, or what is wrong with it. Empty lines before the rules count those of the file."""
        try:
            if not Rules.parse(rules, known, broken=broken):
                raise RuleError("it has no rules")
        except LycorisError as error:
            fail(f": {name}: {error}", name)
            return
        lines = rules.strip("\n").splitlines()
        # With the lines of those that it names, which may be given other ones further down.
        found[name] = "\n".join(known.get(without_comment(line).strip(), line) for line in lines).strip()
        broken.pop(name, None)

    def close() -> None:
        if name:
            add(name, "\n" * start + "\n".join(body), {**BLOCK_PRESETS, **found})

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
                # In its own place, so that columns are those of the file.
                before = raw.index(":") + 1
                add(vector[1].strip(), "\n" * (number - 1) + " " * before + raw[before:], {})
            else:
                meant = WORD.match(line)
                fail(f", line {number}: it is neither [name] nor NAME:1,0,0,...", meant and meant[0])
    close()
    return PresetFile(found, tuple(faults), broken)


def _is_preset(line: str) -> bool:
    """Whether a line is a vector with a name of its own, and not with that of the tool that it is for."""
    found = NAMED_VECTOR.fullmatch(line)
    return found is not None and found[1].strip().lower() not in TOOLS
