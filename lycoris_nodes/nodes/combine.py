"""The node Combine LyCORIS Stacks."""

from __future__ import annotations

from collections.abc import Mapping

from ...lycoris_ops import Stack
from ..host.page import io
from ..schema.checks import checked
from ..schema.inputs import LOAD, stack_input, stack_output

MOST = 50
"""The most inputs that the node can have; the host allows up to 100."""


class LycorisCombineStacks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        template = io.Autogrow.TemplatePrefix(
            stack_input("A stack to join. A new input appears when the last one is connected."),
            prefix="stack",
            min=0,
            max=MOST,
        )
        return io.Schema(
            node_id="LycorisCombineStacks",
            display_name="Combine LyCORIS Stacks",
            category=LOAD,
            description="Joins several stacks into one. Their effects add up, and the order does not change "
            "the result. Empty inputs are left out.",
            search_aliases=["merge lora stacks", "join stacks", "lora stack", "multi lora", "append stack"],
            inputs=[
                io.Autogrow.Input("stacks", template=template, tooltip="The stacks to join."),
            ],
            outputs=[stack_output("One stack with the LoRA / LyCORIS files of all of them.")],
        )

    @classmethod
    @checked
    def execute(cls, stacks: Mapping[str, Stack | None] | None = None) -> io.NodeOutput:
        values = (stacks or {}).values()
        return io.NodeOutput(sum((stack for stack in values if stack), Stack()))
