"""The node Save Merged Model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...lycoris_ops import SAFETENSORS, Fingerprint, Stack, describe, merge_checkpoint, phrase, verdict
from ..files.codec import HostCodec
from ..files.models import model_names, model_path
from ..host.files import output_path, shown_path, workflow_metadata
from ..host.page import io, progress, tell_page
from ..schema.checks import checked, file_stamp
from ..schema.inputs import AS_IT_IS, DTYPES, NOTHING_SAVED, SAVE, dtype_input, stack_input
from ..schema.report import MEANWHILE, report_output, valid, with_report


class LycorisSaveCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisSaveCheckpoint",
            display_name="Save Merged Model",
            category=SAVE,
            description="Merges a stack into a model file and saves the result in the output folder. "
            "The file is read and written piece by piece, so even a large one needs little memory. What "
            "the stack does not change is copied as it is, unless you choose another dtype.",
            search_aliases=[
                "save checkpoint",
                "bake lora",
                "merge lora",
                "merge lora into checkpoint",
                "export model",
            ],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "base",
                    options=model_names(),
                    tooltip="The file to merge into: a checkpoint, or a file with only a diffusion model or "
                    "a text encoder. Only safetensors files are listed: no others can be streamed.",
                ),
                stack_input("The stack to merge in, with its strengths and block rules."),
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
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, base: str | None = None) -> bool | str:
        return valid(lambda: cls.fingerprint_inputs(base))

    @classmethod
    def fingerprint_inputs(cls, base: str | None = None, **_: Any) -> str:
        return file_stamp("base", base, lambda name: Fingerprint.of(model_path(name)).stamp)

    @classmethod
    @checked
    def execute(
        cls,
        base: str,
        stack: Stack | None = None,
        filename_prefix: str = "",
        dtype: str = AS_IT_IS,
        strict: bool = False,
    ) -> io.NodeOutput:
        if stack is None:
            return with_report(report=NOTHING_SAVED, state="nothing")
        path = output_path(filename_prefix, SAFETENSORS[0])
        # The total comes with the first update.
        bar, started = progress(1), False

        def written(done: int, size: int) -> None:
            nonlocal started
            if not started:
                started = True
                words = phrase("R-writing-mb", size=size / 1000000.0, path=shown_path(path))
                tell_page(MEANWHILE, cls.hidden, text=words)
            bar(done, size)

        result = merge_checkpoint(
            model_path(base),
            stack,
            path,
            DTYPES[dtype],
            # The loaded model adds this prefix to the names of a diffusion model's own file.
            codec=HostCodec("diffusion_model." if base.startswith("diffusion_models/") else ""),
            strict=strict,
            # The number was free, but another program may take it meanwhile.
            overwrite=False,
            metadata=workflow_metadata(cls.hidden),
            progress=written,
        )
        saved = replace(result, path=shown_path(result.path))
        first = f"{phrase('R-saved-2', path=saved.path)} "
        return with_report(
            report=f"{first}{describe(result.resolution, whole=True)}\n\n{saved}",
            brief=f"{first}{describe(result.resolution)}\n\n{saved}",
            state=verdict(result.resolution)[0],
        )
