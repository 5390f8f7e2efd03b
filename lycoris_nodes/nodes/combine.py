"""Combine LyCORIS Stacks."""

from __future__ import annotations

from collections.abc import Mapping

from ...lycoris_ops import Stack
from ..host import io
from ..wires import CATEGORY, stack_input, stack_output

MOST = 50


class LycorisCombineStacks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        template = io.Autogrow.TemplatePrefix(
            stack_input(tooltip="A stack; a new input appears when this one is connected."),
            prefix="stack",
            min=2,
            max=MOST,
        )
        return io.Schema(
            node_id="LycorisCombineStacks",
            display_name="Combine LyCORIS Stacks",
            category=CATEGORY,
            description="Joins any number of stacks into one. Their effects add; the order has no "
            "influence on the result.",
            search_aliases=["merge lora stacks", "join stacks", "lora stack combine", "append stack"],
            inputs=[
                io.Autogrow.Input("stacks", template=template, tooltip="The stacks to join, in order."),
            ],
            outputs=[stack_output("All adapters of all stacks.")],
        )

    @classmethod
    def execute(cls, stacks: Mapping[str, Stack | None]) -> io.NodeOutput:
        return io.NodeOutput(sum((stack for stack in stacks.values() if stack), Stack()))
