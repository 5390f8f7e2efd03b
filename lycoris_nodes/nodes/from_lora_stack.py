"""The node LyCORIS Stack from LORA_STACK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...lycoris_ops import Entry, Stack, adapter_of_tensors
from ..host.page import io
from ..schema.checks import checked
from ..schema.inputs import (
    LOAD,
    LORA_STACK,
    check_strength,
    stack_input,
    stack_output,
    strength_input,
)
from ..schema.report import valid
from ..stacks.lora_stack import from_lora_stack

NAME = "LORA_MODEL"


class LycorisFromLoraStack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisFromLoraStack",
            display_name="LyCORIS Stack from LORA_STACK",
            category=LOAD,
            description="Makes a stack from the LORA_STACK that other packs pass from node to node, and from "
            "the LORA_MODEL of ComfyUI's own training nodes.",
            search_aliases=["lora stack", "LORA_STACK", "LORA_MODEL", "convert lora stack", "lora stacker"],
            inputs=[
                LORA_STACK.Input(
                    "lora_stack",
                    optional=True,
                    tooltip="Names and strengths from a LoRA stacker of another pack. Rows that are None are "
                    "left out.",
                ),
                io.LoraModel.Input(
                    "lora_model",
                    optional=True,
                    tooltip="A LoRA in memory, from Train LoRA and other nodes of ComfyUI.",
                ),
                strength_input("strength_model", "How strongly the LORA_MODEL changes the diffusion model."),
                strength_input("strength_clip", "How strongly the LORA_MODEL changes the text encoder."),
                stack_input("A stack to add them to; empty starts a new one."),
            ],
            outputs=[
                stack_output(
                    "The stack, then the rows of the LORA_STACK in their order, then the LORA_MODEL."
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, strength_model: float | None = None, strength_clip: float | None = None
    ) -> bool | str:
        return valid(
            lambda: check_strength("strength_model", strength_model),
            lambda: check_strength("strength_clip", strength_clip),
        )

    @classmethod
    @checked
    def execute(
        cls,
        strength_model: float,
        strength_clip: float,
        lora_stack: Sequence[Any] | None = None,
        lora_model: Mapping[str, Any] | None = None,
        stack: Stack | None = None,
    ) -> io.NodeOutput:
        entries = (stack or Stack()) + from_lora_stack(lora_stack)
        if lora_model is not None:
            adapter = adapter_of_tensors(lora_model, name=NAME)
            entries += Stack([Entry(adapter, strength=strength_model, strength_clip=strength_clip)])
        return io.NodeOutput(entries)
