"""The node Save Merged Model."""

from __future__ import annotations

from typing import Any

from ...lycoris_ops import (
    SAFETENSORS,
    Fingerprint,
    LycorisError,
    Stack,
    describe,
    merge_checkpoint,
)
from ..codec import HostCodec
from ..host import file_names, file_path, io, output_path, progress, workflow_metadata
from ..inputs import check, checked
from ..wires import CATEGORY, DTYPES, dtype_input, report_output, stack_input, valid, with_report

FOLDERS = ("checkpoints", "diffusion_models", "text_encoders")


class LycorisSaveCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisSaveCheckpoint",
            display_name="Save Merged Model",
            category=CATEGORY,
            description="Merges a stack into a model file and saves the result in the output folder. "
            "The file is read and written piece by piece, so even a large one needs little memory. What "
            "the stack does not change is copied as it is.",
            search_aliases=["save checkpoint", "bake lora", "merge lora into checkpoint", "export model"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "base",
                    options=_base_names(),
                    tooltip="The file to merge into: a checkpoint, or a file with only a diffusion model or "
                    "a text encoder. Only safetensors files are listed: no others can be streamed.",
                ),
                stack_input(tooltip="The stack to merge in, with its strengths and block rules."),
                io.String.Input(
                    "filename_prefix",
                    default="checkpoints/merged",
                    tooltip="Name in the output folder; a number is added, and no file is overwritten.",
                ),
                dtype_input(
                    "The dtype to save the whole model in; quantised weights keep their format. "
                    "'as in the file' keeps the dtype of each tensor."
                ),
                io.Boolean.Input(
                    "strict",
                    default=False,
                    tooltip="Off: adapter layers that cannot be matched with the file are reported. On: any "
                    "such layer is an error, except layers of a part that the file does not hold.",
                ),
            ],
            outputs=[report_output()],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, base: str | None = None) -> bool | str:
        return valid(lambda: cls.fingerprint_inputs(base))

    @classmethod
    def fingerprint_inputs(cls, base: str | None = None, **_: Any) -> str:
        # None where another node gives the name: nothing is known of it before that node has run.
        if base is None:
            return ""
        check("base", "COMBO", base)
        return Fingerprint.of(_base_path(base)).stamp

    @classmethod
    @checked
    def execute(
        cls, base: str, stack: Stack, filename_prefix: str, dtype: str, strict: bool
    ) -> io.NodeOutput:
        result = merge_checkpoint(
            _base_path(base),
            stack,
            output_path(filename_prefix, SAFETENSORS[0]),
            DTYPES[dtype],
            # The loaded model adds this prefix to the names of a diffusion model's own file.
            codec=HostCodec("diffusion_model." if base.startswith("diffusion_models/") else ""),
            strict=strict,
            # The number was free, but another program may take it meanwhile.
            overwrite=False,
            metadata=workflow_metadata(cls.hidden),
            # The total comes with the first update.
            progress=progress(1),
        )
        return with_report(report=f"{describe(result.resolution)}\n\n{result}")


def _base_names() -> list[str]:
    """Every file that can be merged into, as `folder/name`."""
    return [f"{folder}/{name}" for folder in FOLDERS for name in file_names(folder, SAFETENSORS)]


def _base_path(base: str) -> str:
    """The full path of a file given as `folder/name`. Raises LycorisError for another folder or no file."""
    folder, _, name = base.partition("/")
    if folder not in FOLDERS:
        raise LycorisError(
            "the name of the base must begin with the folder that it is in",
            file=base,
            expected=" or ".join(f"{known}/<file>" for known in FOLDERS),
        )
    return file_path(folder, name)
