"""Save Merged Model."""

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
from ..wires import CATEGORY, DTYPES, dtype_input, report_output, stack_input, valid, with_report

FOLDERS = ("checkpoints", "diffusion_models", "text_encoders")


class LycorisSaveCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisSaveCheckpoint",
            display_name="Save Merged Model",
            category=CATEGORY,
            description="Merges a stack into a model file and writes the result to the output folder. "
            "The file is streamed, so memory stays small whatever its size, and everything that the "
            "stack does not change is kept byte by byte.",
            search_aliases=["save checkpoint", "bake lora", "merge lora into checkpoint", "export model"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "base",
                    options=_base_names(),
                    tooltip="The file to merge into: a checkpoint, or a diffusion model or text encoder "
                    "of its own. Only safetensors files can be streamed.",
                ),
                stack_input(tooltip="What to merge in, with its strengths and rules."),
                io.String.Input(
                    "filename_prefix",
                    default="checkpoints/merged",
                    tooltip="Name in the output folder; a number is added, and no file is overwritten.",
                ),
                dtype_input(
                    "The dtype to write float tensors in. 'as in the file' leaves everything that is not "
                    "merged untouched."
                ),
                io.Boolean.Input(
                    "strict",
                    default=False,
                    tooltip="On: a layer of an adapter that meets nothing is an error. Layers of a part "
                    "that the file does not hold do not count.",
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
        return Fingerprint.of(_base_path(base)).stamp if base is not None else ""

    @classmethod
    def execute(
        cls, base: str, stack: Stack, filename_prefix: str, dtype: str, strict: bool
    ) -> io.NodeOutput:
        result = merge_checkpoint(
            _base_path(base),
            stack,
            output_path(filename_prefix, SAFETENSORS[0]),
            DTYPES[dtype],
            codec=HostCodec("diffusion_model." if base.startswith("diffusion_models/") else ""),
            strict=strict,
            metadata=workflow_metadata(cls.hidden),
            progress=progress(1),
        )
        return with_report(report=f"{describe(result.resolution)}\n\n{result}")


def _base_names() -> list[str]:
    return [f"{folder}/{name}" for folder in FOLDERS for name in file_names(folder, SAFETENSORS)]


def _base_path(base: str) -> str:
    folder, _, name = base.partition("/")
    if folder not in FOLDERS:
        raise LycorisError(
            "the base file must say which folder it is in",
            file=base,
            expected=" or ".join(f"{known}/<file>" for known in FOLDERS),
        )
    return file_path(folder, name)
