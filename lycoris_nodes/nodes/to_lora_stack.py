"""The node LyCORIS Stack to LORA_STACK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...lycoris_ops import LycorisError, Stack, adapter_tensors, faults_in_comfy, paragraph, phrase
from ..host.files import shown_text
from ..host.page import ExecutionBlocker, io
from ..host.weights import weight_shapes
from ..schema.checks import checked
from ..schema.inputs import LORA_STACK, NOTHING_HANDED, SAVE, optional_model, output, stack_input
from ..schema.report import report_output, with_report
from ..stacks.lora_stack import only_adapter, to_lora_stack


class LycorisToLoraStack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisToLoraStack",
            display_name="LyCORIS Stack to LORA_STACK",
            category=SAVE,
            description="Hands a stack to nodes of other packs that take a LORA_STACK, or one adapter to "
            "ComfyUI's own nodes that take a LORA_MODEL.",
            search_aliases=["lora stack", "LORA_STACK", "LORA_MODEL", "convert lora stack", "lora model"],
            inputs=[
                stack_input("The stack to hand on."),
                *optional_model(
                    "Only for lora_model: the diffusion model that the adapter is for. Without it "
                    "most names of layers cannot be translated into ComfyUI's.",
                    "Only for lora_model: the text encoder, if the adapter changes it.",
                ),
            ],
            outputs=[
                output(
                    LORA_STACK,
                    "lora_stack",
                    "The names of the files in the loras folders with both strengths. A stack that "
                    "it cannot hold stops the nodes that are connected here.",
                ),
                output(
                    io.LoraModel,
                    "lora_model",
                    "The tensors of a stack of one adapter, with its strengths in them. ComfyUI's "
                    "own nodes ignore some kinds (ia3, oftv2, boft_peft): the report says so. Another stack "
                    "stops the nodes that are connected here.",
                ),
                report_output(),
            ],
        )

    @classmethod
    @checked
    def execute(cls, stack: Stack | None = None, model: Any = None, clip: Any = None) -> io.NodeOutput:
        if stack is None:
            blocked = ExecutionBlocker(phrase("R-lora-model", nothing_handed=NOTHING_HANDED))
            return with_report([], blocked, report=NOTHING_HANDED, state="nothing")
        shapes = weight_shapes(model, clip) or None
        faults: list[str] = []

        def tensors() -> dict[str, Any]:
            adapter = only_adapter(stack, "a LORA_MODEL", shapes)
            dialect = "kohya" if adapter.dialect == "kohya" else "comfy"
            tensors = adapter_tensors(adapter, dialect, model=shapes)
            faults.extend(faults_in_comfy(adapter.layers.values(), dialect))
            return tensors

        rows, row_words = _held(lambda: to_lora_stack(stack), "lora_stack", "row")
        held, held_words = _held(tensors, "lora_model", "tensor")
        report = paragraph([row_words, held_words, *(f"  {fault}" for fault in faults)])
        # A stack of several cannot be a LORA_MODEL, and that is no fault.
        state = "partly" if faults or isinstance(rows, ExecutionBlocker) else "all"
        if isinstance(rows, ExecutionBlocker) and isinstance(held, ExecutionBlocker):
            state = "nothing"
        return with_report(rows, held, report=report, state=state)


def _held(make: Callable[[], Any], name: str, unit: str) -> tuple[Any, str]:
    """The value of an output, and its line of the report.

    Where it cannot be made, only nodes that are connected to this output stop, with the reason.
    """
    try:
        value = make()
    except LycorisError as error:
        reason = shown_text(str(error))
        return ExecutionBlocker(f"{name}: {reason}"), phrase("R-cannot-be-made", name=name, reason=reason)
    return value, f"{name}: {len(value)} {unit}{'' if len(value) == 1 else 's'}"
