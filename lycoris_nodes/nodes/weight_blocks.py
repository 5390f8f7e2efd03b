"""The node Weight LyCORIS Blocks."""

from __future__ import annotations

from typing import Any

from ...lycoris_ops import LycorisError, Rules, Stack
from ..host.page import io
from ..schema.checks import check, checked
from ..schema.inputs import SHAPE, advanced, seed_input, stack_input, stack_output
from ..schema.report import valid
from ..stacks.presets import FILE, known_presets, own_presets, parsed

EXAMPLE = """# in.4 = 0.5
# mid, out.3-5 = off
# te = 0.8
# double.0-18 = 0.2..1.0
# attn.q = *0.5
# 1,0,0,0,1,1,1,1,1,1,1,1,1,1,1,1,1"""
NO_PRESET = "no preset"


class LycorisWeightBlocks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        own = own_presets()
        return io.Schema(
            node_id="LycorisWeightBlocks",
            display_name="Weight LyCORIS Blocks",
            category=SHAPE,
            description="Sets weights for blocks or single layers of every LoRA / LyCORIS in a stack. A "
            "weight multiplies the strength there.",
            search_aliases=[
                "lora block weight",
                "lbw",
                "block weight",
                "lora layers",
                "block weights",
                "mbw",
            ],
            inputs=[
                stack_input("The stack whose adapters get these weights."),
                io.String.Input(
                    "rules",
                    multiline=True,
                    default=EXAMPLE,
                    tooltip="One rule per line: pattern = value, with block names (in.4, mid, out.3-5, te, "
                    "double.*, attn.q), layer names with * and ?, or /regular expressions/; the value is a "
                    "number, off, *0.5 or 0.2..1.0. A line can also be a vector of block weights or a "
                    "preset's name. Later lines win, and what no line matches keeps the weight 1. # starts a "
                    "comment.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[NO_PRESET, *known_presets(own), *own.faults],
                    default=NO_PRESET,
                    optional=True,
                    tooltip="Rules by name, applied before those of the text. Your own are in "
                    f"{FILE} in ComfyUI's user folder.",
                ),
                *advanced(seed_input("The seed for the letters R and U in a vector.")),
            ],
            outputs=[stack_output("The same stack with these weights.")],
        )

    @classmethod
    def validate_inputs(cls, rules: str | None = None, preset: str | None = None) -> bool | str:
        # None when another node gives the text.
        return valid(lambda: _parsed(rules or "", preset or NO_PRESET))

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        return repr(own_presets().presets)

    @classmethod
    @checked
    def execute(
        cls, stack: Stack | None = None, rules: str = "", preset: str = NO_PRESET, seed: int = 0
    ) -> io.NodeOutput:
        return io.NodeOutput((stack or Stack()).with_rules(_parsed(rules, preset, seed)))


def _parsed(rules: str, preset: str, seed: int = 0) -> Rules:
    """The rules of a preset, then the rules of the text. Raises LycorisError for an unknown preset."""
    check("rules", "STRING", rules)
    check("preset", "COMBO", preset)
    own = own_presets()
    if fault := own.broken.get(preset, preset if preset in own.faults else None):
        raise LycorisError("E-preset-unreadable", presets=FILE, got=fault)
    text, known = parsed(rules, own, seed=seed), known_presets(own)
    if preset == NO_PRESET:
        return text
    if preset not in known:
        raise LycorisError(
            "E-preset-not-among-readable" if own.faults else "E-preset-unknown",
            presets=FILE,
            got=preset,
            fault=own.faults[0] if own.faults else None,
        )
    return parsed(known[preset], own, seed=seed).under(text)
