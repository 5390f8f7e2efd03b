"""The node Inspect LyCORIS Stack."""

from __future__ import annotations

from typing import Any

from ...lycoris_ops import Stack, describe_examination, examination_picture, examine
from ..host.page import io, picture_tensor, progress
from ..host.weights import compute_device, connected_weights
from ..schema.checks import checked
from ..schema.inputs import SHAPE, no_stack, optional_model, output, stack_input
from ..schema.report import report_output, with_report


class LycorisInspect(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisInspect",
            display_name="Inspect LyCORIS Stack",
            category=SHAPE,
            description="Measures what the adapters of a stack change: how much in each block and layer, "
            "with what rank, and how far they agree with each other. The numbers are exact sums over the "
            "layers' factors.",
            search_aliases=[
                "lora analysis",
                "analyze lora",
                "inspect lora",
                "lora info",
                "compare loras",
                "lora similarity",
                "lora spectrum",
                "effective rank",
            ],
            is_output_node=True,
            inputs=[
                stack_input("The adapters to measure, at their strengths."),
                *optional_model(
                    "The model that they are for. With it, changes are compared with its weights, "
                    "blocks have its names, and kinds whose change depends on the weights (DoRA, OFT, "
                    "IA3, ...) can be measured.",
                    "The text encoder, to measure its layers too.",
                ),
                io.Boolean.Input(
                    "signs",
                    default=False,
                    optional=True,
                    tooltip="On: also count the values that two adapters change in opposite directions. "
                    "This computes each change in full.",
                ),
            ],
            outputs=[
                output(io.Image, "picture", "Charts of blocks, layers, spectra and pairs."),
                report_output(),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, stack: Stack | None = None, model: Any = None, clip: Any = None, signs: bool = False
    ) -> io.NodeOutput:
        if not stack:
            raise no_stack("inspect", stack)
        # The total comes with the first update.
        examined = examine(
            stack,
            base=connected_weights(model, clip),
            signs=signs,
            device=compute_device(),
            progress=progress(1),
        )
        picture = examination_picture(examined)
        return with_report(
            picture_tensor(picture.image()), report=describe_examination(examined), picture=picture
        )
