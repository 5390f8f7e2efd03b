"""Weight LyCORIS Blocks."""

from __future__ import annotations

from ...lycoris_ops import Rules, Stack
from ..host import io
from ..wires import CATEGORY, stack_input, stack_output, valid

EXAMPLE = "in.* = 1\nmid = 0.5\nout.* = 1\nte = 1"


class LycorisWeightBlocks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisWeightBlocks",
            display_name="Weight LyCORIS Blocks",
            category=CATEGORY,
            description="Gives blocks or single layers of every LoRA / LyCORIS in a stack a weight of "
            "their own, which multiplies its strength.",
            search_aliases=["lora block weight", "lbw", "lora layers", "block weights", "mbw"],
            inputs=[
                stack_input(tooltip="The stack whose adapters get these weights."),
                io.String.Input(
                    "rules",
                    multiline=True,
                    default=EXAMPLE,
                    tooltip="A rule a line: pattern = weight. Patterns are block names (in.4, mid, "
                    "out.*, double.3, te) or layer names with * and ?; the last rule that matches a "
                    "layer counts, and layers that none matches keep 1. # starts a comment.",
                ),
            ],
            outputs=[stack_output("The stack under these rules.")],
        )

    @classmethod
    def validate_inputs(cls, rules: str | None = None) -> bool | str:
        return valid(lambda: Rules.parse(rules or ""))

    @classmethod
    def execute(cls, stack: Stack, rules: str) -> io.NodeOutput:
        return io.NodeOutput(stack.with_rules(Rules.parse(rules)))
