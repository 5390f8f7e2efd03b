"""The node Weight LyCORIS Blocks."""

from __future__ import annotations

from ...lycoris_ops import Rules, Stack
from ..host import io
from ..inputs import checked
from ..wires import CATEGORY, stack_input, stack_output, valid

EXAMPLE = "in.* = 1\nmid = 0.5\nout.* = 1\nte = 1"


class LycorisWeightBlocks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisWeightBlocks",
            display_name="Weight LyCORIS Blocks",
            category=CATEGORY,
            description="Sets weights for blocks or single layers of every LoRA / LyCORIS in a stack. A "
            "weight multiplies the strength there.",
            search_aliases=["lora block weight", "lbw", "lora layers", "block weights", "mbw"],
            inputs=[
                stack_input(tooltip="The stack whose adapters get these weights."),
                io.String.Input(
                    "rules",
                    multiline=True,
                    default=EXAMPLE,
                    tooltip="One rule per line: pattern = weight, with a block name (in.4, mid, out.*, "
                    "double.3, te) or a layer name with * and ? as the pattern. The last rule that matches a "
                    "layer counts; layers that no rule matches keep the weight 1. # starts a comment.",
                ),
            ],
            outputs=[stack_output("The same stack with these weights.")],
        )

    @classmethod
    def validate_inputs(cls, rules: str | None = None) -> bool | str:
        return valid(lambda: Rules.parse(rules or ""))

    @classmethod
    @checked
    def execute(cls, stack: Stack, rules: str) -> io.NodeOutput:
        return io.NodeOutput(stack.with_rules(Rules.parse(rules)))
