"""The node Resize / Convert LoRA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...lycoris_ops import Adapter, Entry, LycorisError, Stack, parse_size, phrase, resize_adapter
from ..host.page import io
from ..host.weights import connected_weights
from ..schema.checks import checked
from ..schema.inputs import (
    NOTHING_RESIZED,
    SHAPE,
    algorithm_input,
    fit_inputs,
    fit_options,
    optional_model,
    size_input,
    stack_input,
    stack_output,
)
from ..schema.report import report_output, with_fit, with_report


class LycorisResizeAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisResizeAdapter",
            display_name="Resize / Convert LoRA",
            category=SHAPE,
            description="Makes adapters smaller, or turns them into another kind: LoHa, LoKr, DoRA, OFT and "
            "the rest into LoRA, or LoRA into LoKr. Each new layer is as near to the old one as its kind "
            "and size allow, and the report says what is lost.",
            search_aliases=[
                "resize lora",
                "lora rank",
                "reduce rank",
                "convert lokr to lora",
                "convert loha to lora",
                "dora to lora",
                "lycoris convert",
                "compress lora",
            ],
            is_output_node=True,
            inputs=[
                stack_input(
                    "The adapters. Each becomes one of the new kind and size, and keeps its strengths "
                    "and block rules."
                ),
                size_input(),
                algorithm_input("same"),
                *optional_model(
                    "The model that the adapters are for. Needed only for kinds whose change depends "
                    "on its weights (DoRA, OFT, BOFT, IA3, GLoRA, T-LoRA); the result is for this model.",
                    "The text encoder, if layers of such kinds change it.",
                ),
                *fit_inputs(),
            ],
            outputs=[stack_output("The new adapters, at the same strengths."), report_output()],
        )

    @classmethod
    @checked
    def execute(
        cls,
        stack: Stack | None = None,
        size: str = "auto",
        algorithm: str = "lora",
        model: Any = None,
        clip: Any = None,
        **fit: Any,
    ) -> io.NodeOutput:
        if not stack:
            report = NOTHING_RESIZED if stack is None else phrase("R-nothing-was-resized-stack-empty")
            return with_report(stack, report=report, state="nothing")
        wanted = parse_size(size)
        base = connected_weights(model, clip)
        if base is not None:
            for entry in stack:
                _check_one_model(entry)

        def resized(adapter: Adapter) -> Adapter:
            return resize_adapter(adapter, wanted, algorithm, base, **fit_options(**fit))

        entries = [
            replace(
                entry,
                adapter=resized(entry.adapter),
                low_noise=None if entry.low_noise is None else resized(entry.low_noise),
            )
            for entry in stack
        ]
        return with_fit(Stack(entries))


def _check_one_model(entry: Entry) -> None:
    """Raise LycorisError for a pair whose changes depend on weights: only one of its two models is linked."""
    for adapter in entry.adapters if entry.low_noise is not None else ():
        for name, layer in adapter.layers.items():
            if layer.additive() is None or layer.bias_additive() is None:
                raise LycorisError(
                    "E-resize-pair-needs-models", file=entry.name, key=name, algorithm=layer.algorithm
                )
