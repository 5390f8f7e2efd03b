"""The node Train LoRA / LyCORIS."""

from __future__ import annotations

from typing import Any

from ..host.page import io
from ..schema.checks import checked
from ..schema.inputs import TRAIN
from ..training.node.output import trained
from ..training.node.schema import inputs, outputs
from ..training.node.settings import Asked


class LycorisTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisTrain",
            display_name="Train LoRA / LyCORIS",
            category=TRAIN,
            description="Trains a LoRA / LyCORIS of any kind on latents and captions, for any model. The "
            "file is saved in the output folder, and the stack goes straight into Apply LyCORIS Stack. Stop "
            "keeps what was learned.",
            search_aliases=[
                *("train lora", "lora training", "lora trainer", "fine-tune", "dreambooth", "train style"),
                *("train lokr", "train loha"),
            ],
            is_output_node=True,
            is_input_list=True,
            inputs=inputs(),
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(cls, **asked: Any) -> io.NodeOutput:
        return trained(Asked(**asked), cls.hidden)
