"""The node LyCORIS Blocks of a Model."""

from __future__ import annotations

from typing import Any

from ...lycoris_ops import Stack, blocks_picture, describe_blocks, phrase, survey
from ..host.page import io, picture_tensor, progress
from ..host.weights import LoadedWeights
from ..schema.checks import checked
from ..schema.inputs import SHAPE, output, stack_input
from ..schema.report import report_output, with_report


class LycorisBlockInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisBlockInfo",
            display_name="LyCORIS Blocks of a Model",
            category=SHAPE,
            description="Lists the blocks of a model by their names in block rules and, for each LoRA / "
            "LyCORIS of a stack, the number of its layers and the share of its change in each block.",
            search_aliases=["lora block info", "block weight", "lora layers", "block names", "lora analysis"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model whose blocks are listed."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder, to list its blocks too."),
                stack_input("The adapters to measure, with their strengths and block rules."),
            ],
            outputs=[
                report_output(),
                output(io.Image, "picture", "The share of each block as bars."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, clip: Any = None, stack: Stack | None = None) -> io.NodeOutput:
        weights = LoadedWeights(phrase("R-connected-model"), model, clip)
        surveyed = survey(stack or Stack(), weights.shapes, read=weights.original, progress=progress(1))
        picture = blocks_picture(surveyed)
        report, shown = describe_blocks(surveyed), picture_tensor(picture.image())
        shown_report = with_report(report=report, picture=picture)
        return io.NodeOutput(report, shown, ui=shown_report.ui)
