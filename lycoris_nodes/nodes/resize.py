"""The node Resize / Convert LoRA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...lycoris_ops import Entry, LycorisError, Stack, describe_fit, parse_size, resize_adapter
from ..host import compute_device, io, progress
from ..inputs import checked
from ..weights import connected_weights
from ..wires import (
    AS_IT_IS,
    CATEGORY,
    DTYPES,
    algorithm_input,
    fit_inputs,
    report_output,
    size_input,
    stack_input,
    stack_output,
    with_report,
)


class LycorisResizeAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisResizeAdapter",
            display_name="Resize / Convert LoRA",
            category=CATEGORY,
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
        stack: Stack,
        size: str,
        algorithm: str,
        model: Any = None,
        clip: Any = None,
        dtype: str = AS_IT_IS,
        tucker: bool = False,
        largest_rank: int = 0,
        seed: int = 0,
    ) -> io.NodeOutput:
        if not len(stack):
            raise LycorisError(
                "there is nothing to resize", got="an empty stack", expected="a stack of adapters"
            )
        wanted = parse_size(size)
        base = connected_weights(model, clip)
        entries: list[Entry] = []
        reports: list[str] = []
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
            reports.append(describe_fit(made))
        return with_report(Stack(entries), report="\n\n".join(reports))
