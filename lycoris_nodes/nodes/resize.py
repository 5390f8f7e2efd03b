"""The node Resize / Convert LoRA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...lycoris_ops import Entry, Stack, parse_size, resize_adapter
from ..host.page import io, progress
from ..host.weights import compute_device, connected_weights
from ..schema.checks import checked
from ..schema.inputs import (
    AS_IT_IS,
    DTYPES,
    SHAPE,
    algorithm_input,
    fit_inputs,
    no_stack,
    size_input,
    stack_input,
    stack_output,
)
from ..schema.report import report_output, with_fit


class LycorisResizeAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisResizeAdapter",
            display_name="Resize / Convert LoRA",
            category=SHAPE,
            description="Makes adapters smaller, or turns them into another kind: LoHa, LoKr, DoRA, OFT and "
            "the rest into LoRA, or the reverse. Each new layer is the nearest to the old one that there is, "
            "and the report says what is lost.",
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
            inputs=[
                stack_input(
                    tooltip="The adapters. Each becomes one of the new kind and size; strengths and block "
                    "rules stay on it."
                ),
                size_input(),
                algorithm_input("same"),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that the adapters are for. Needed only for kinds whose change depends "
                    "on its weights (DoRA, OFT, BOFT, IA3, GLoRA, T-LoRA); the result is for this model.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder, if layers of such kinds change it.",
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
        dtype: str = AS_IT_IS,
        tucker: bool = False,
        largest_rank: int = 0,
        seed: int = 0,
    ) -> io.NodeOutput:
        if not stack:
            raise no_stack("resize", stack)
        wanted = parse_size(size)
        base = connected_weights(model, clip)
        entries: list[Entry] = []
        for entry in stack:
            made = resize_adapter(
                entry.adapter,
                wanted,
                algorithm,
                base,
                dtype=DTYPES[dtype],
                tucker=tucker,
                largest=largest_rank or None,
                seed=seed,
                device=compute_device(),
                # The total comes with the first update.
                progress=progress(1),
            )
            entries.append(replace(entry, adapter=made))
        return with_fit(Stack(entries))
