"""The node Train LoRA / LyCORIS."""

from __future__ import annotations

from typing import Any

from ...lycoris_ops import Entry, Stack, curves_picture, load_adapter
from ..host.files import file_tensors, workflow_metadata
from ..host.page import asking_page, io, picture_tensor, tell_page
from ..schema.checks import checked
from ..schema.inputs import TRAIN
from ..schema.report import with_report
from ..training.node.live import running
from ..training.node.run import train
from ..training.node.schema import inputs, outputs
from ..training.node.settings import Asked

TRAINING = "lycoris.training"
"""The event with how far a training is."""
RESCUED = "lycoris.rescued"
"""The event with what remains of an interrupted training. The node's box shows it."""


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
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(cls, **asked: Any) -> io.NodeOutput:
        key = str(getattr(cls.hidden, "unique_id", ""))

        def tell(known: dict[str, Any]) -> None:
            running[key] = {"page": asking_page(), **known}
            tell_page(TRAINING, cls.hidden, shown=known)

        def rescued(text: str) -> None:
            tell_page(RESCUED, cls.hidden, text=text)

        try:
            made = train(Asked(**asked), workflow_metadata(cls.hidden), tell, rescued)
        finally:
            running.pop(key, None)
        history = made.result.history
        picture = picture_tensor(curves_picture(history, made.result.steps, made.name, made.race))
        # PEFT's output is a folder with the file in it.
        path = str(made.result.output)
        return with_report(
            Stack([Entry(load_adapter(path))]),
            file_tensors(path),
            # ComfyUI's own nodes ignore `validation`.
            {"loss": [value for _, value in history.losses], "validation": list(history.validation)},
            picture,
            made.result.steps,
            path,
            report=made.report,
            shown={"training": (made.shown,)},
        )
