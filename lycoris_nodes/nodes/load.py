"""The node Load LoRA / LyCORIS."""

from __future__ import annotations

from typing import Any

from ...lycoris_ops import Entry, Stack, adapter_stamp, load_adapter
from ..files.loras import lora_names, lora_path
from ..host.page import io
from ..schema.checks import checked, file_stamp
from ..schema.inputs import (
    AS_IT_IS,
    LOAD,
    advanced,
    check_strength,
    stack_input,
    stack_output,
    strength_input,
)
from ..schema.report import valid


class LycorisLoadAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisLoadAdapter",
            display_name="Load LoRA / LyCORIS",
            category=LOAD,
            description="Adds a LoRA or LyCORIS file of any kind to a stack. Nothing is applied until "
            "Apply LyCORIS Stack. The file is read once, however many nodes use it.",
            search_aliases=[
                *("load lora", "lora", "lora loader", "lycoris", "loha", "lokr", "locon", "dora", "oft"),
                *("ia3", "glora", "lora stack", "multi lora", "power lora"),
            ],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=lora_names(),
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
                stack_input("A stack to add this file to; empty starts a new one."),
                *advanced(
                    io.Combo.Input(
                        "dora",
                        options=["paper", "host"],
                        default="paper",
                        tooltip="Only for DoRA files. paper: as trained. host: as ComfyUI's own LoRA loader "
                        "computes them, to reproduce images made with it; only DoRA on the output axis "
                        "differs.",
                    ),
                    io.Combo.Input(
                        "sig_type",
                        options=[AS_IT_IS, "principal", "last", "middle"],
                        default=AS_IT_IS,
                        tooltip="Only for T-LoRA files that do not say it themselves: which singular vectors "
                        "of the base model's weights the training started from.",
                    ),
                ),
                io.Boolean.Input(
                    "on",
                    default=True,
                    optional=True,
                    label_on="on",
                    label_off="off",
                    tooltip="Off: the file is not read, and the stack passes as it is.",
                ),
            ],
            outputs=[stack_output("The stack with this file added at its end.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        file: str | None = None,
        strength_model: float | None = None,
        strength_clip: float | None = None,
        on: bool | None = True,
    ) -> bool | str:
        return valid(
            lambda: check_strength("strength_model", strength_model),
            lambda: check_strength("strength_clip", strength_clip),
            lambda: cls.fingerprint_inputs(file, on=on),
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, on: bool | None = True, **_: Any) -> str:
        if on is False:
            return ""
        return file_stamp("file", file, lambda name: adapter_stamp(lora_path(name)))

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
        on: bool = True,
    ) -> io.NodeOutput:
        if not on:
            return io.NodeOutput(stack or Stack())
        # Pass on only what the user chose: an option replaces what the file says, and the same file with
        # other options is another adapter.
        choices = (("dora", dora, "paper"), ("sig_type", sig_type, AS_IT_IS))
        options: dict[str, Any] = {name: value for name, value, usual in choices if value != usual}
        adapter = load_adapter(lora_path(file), **options)
        entry = Entry(adapter, strength=strength_model, strength_clip=strength_clip, label=file)
        return io.NodeOutput((stack or Stack()) + Stack([entry]))
