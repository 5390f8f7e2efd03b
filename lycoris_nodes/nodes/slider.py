"""The node Train LyCORIS Slider."""

from __future__ import annotations

from typing import Any

from ..host.page import io
from ..schema.checks import checked
from ..schema.inputs import TRAIN
from ..training.node.output import trained
from ..training.node.schema import asked_of, outputs
from ..training.slider.samples import slider_samples, strengths_of
from ..training.slider.schema import inputs


class LycorisSlider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisSlider",
            display_name="Train LyCORIS Slider",
            category=TRAIN,
            description="Trains a LoRA / LyCORIS of any kind that moves one attribute up at strengths above "
            "0 and down below 0: between two prompts, without pictures, or between opposed pictures.",
            search_aliases=["concept slider", "leco", "slider lora", "lora slider", "train slider"],
            is_output_node=True,
            is_input_list=True,
            inputs=inputs(),
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(cls, **asked: Any) -> io.NodeOutput:
        passes = len(strengths_of(asked["strengths"]))
        return trained(asked_of(asked), cls.hidden, slider_samples, passes)
