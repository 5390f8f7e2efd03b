"""The node Load LoRA / LyCORIS."""

from __future__ import annotations

from typing import Any

from ...lycoris_ops import PICKLES, SAFETENSORS, Entry, Stack, adapter_stamp, load_adapter
from ..host import file_names, file_path, io
from ..inputs import check, checked
from ..wires import AS_IT_IS, CATEGORY, stack_input, stack_output, valid

FOLDER = "loras"


def strength_input(name: str, tooltip: str) -> Any:
    return io.Float.Input(name, default=1.0, min=-100.0, max=100.0, step=0.01, tooltip=tooltip)


class LycorisLoadAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisLoadAdapter",
            display_name="Load LoRA / LyCORIS",
            category=CATEGORY,
            description="Adds a LoRA or LyCORIS file of any kind to a stack. Nothing is applied until "
            "Apply LyCORIS Stack. The file is read once, however many nodes use it.",
            search_aliases=[
                *("load lora", "lora loader", "lycoris", "loha", "lokr", "locon", "dora", "oft", "ia3"),
                *("glora", "lora stack"),
            ],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=file_names(FOLDER, SAFETENSORS + PICKLES),
                    tooltip="A LoRA / LyCORIS file from the loras folder.",
                ),
                strength_input(
                    "strength_model",
                    "How strongly the diffusion model is changed: 1 as trained, 0 not at all, "
                    "negative the other way.",
                ),
                strength_input(
                    "strength_clip",
                    "How strongly the text encoder is changed: 1 as trained, 0 not at all.",
                ),
                stack_input(optional=True, tooltip="A stack to add this file to; empty starts a new one."),
                io.Combo.Input(
                    "dora",
                    options=["paper", "host"],
                    default="paper",
                    optional=True,
                    advanced=True,
                    tooltip="Only for DoRA files. paper: as trained. host: as ComfyUI's own LoRA loader "
                    "computes them, to reproduce images made with it; only DoRA on the output axis differs.",
                ),
                io.Combo.Input(
                    "sig_type",
                    options=[AS_IT_IS, "principal", "last", "middle"],
                    default=AS_IT_IS,
                    optional=True,
                    advanced=True,
                    tooltip="Only for T-LoRA files that do not say it themselves: which singular vectors of "
                    "the base model's weights the training started from.",
                ),
            ],
            outputs=[stack_output("The stack with this file added at its end.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return valid(lambda: cls.fingerprint_inputs(file))

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: Any) -> str:
        # None where another node gives the name: nothing is known of it before that node has run.
        if file is None:
            return ""
        check("file", "COMBO", file)
        return adapter_stamp(file_path(FOLDER, file))

    @classmethod
    @checked
    def execute(
        cls,
        file: str,
        strength_model: float,
        strength_clip: float,
        stack: Stack | None = None,
        dora: str = "paper",
        sig_type: str = AS_IT_IS,
    ) -> io.NodeOutput:
        options: dict[str, Any] = {"dora": dora}
        # Only a choice of the user's is passed on: it would replace what the file says itself.
        if sig_type != AS_IT_IS:
            options["sig_type"] = sig_type
        adapter = load_adapter(file_path(FOLDER, file), **options)
        entry = Entry(adapter, strength=strength_model, strength_clip=strength_clip)
        return io.NodeOutput((stack or Stack()) + Stack([entry]))
