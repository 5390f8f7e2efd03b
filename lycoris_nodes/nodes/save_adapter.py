"""Save LoRA / LyCORIS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...lycoris_ops import SAFETENSORS, WRITTEN, Entry, LycorisError, Stack, describe_saved, save_adapter
from ..host import io, output_path, progress, weight_shapes, workflow_metadata
from ..wires import CATEGORY, DTYPES, dtype_input, report_output, stack_input, with_report


class LycorisSaveAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisSaveAdapter",
            display_name="Save LoRA / LyCORIS",
            category=CATEGORY,
            description="Writes the adapter of a stack of one to the output folder, in the names and the "
            "dtype that another tool wants. The file is read back before it takes its name.",
            search_aliases=[
                "save lora",
                "convert lora",
                "export lora",
                "lora to diffusers",
                "lora to kohya",
                "lora to peft",
                "lycoris convert",
            ],
            is_output_node=True,
            inputs=[
                stack_input(tooltip="A stack of one adapter, at strength 1 and without block rules."),
                io.Combo.Input(
                    "dialect",
                    options=list(WRITTEN),
                    default="kohya",
                    tooltip="Whose names and tensors to write: kohya (sd-scripts, most web interfaces), "
                    "comfy (ComfyUI's own paths), peft, diffusers, or lycoris (lycoris-lora, SimpleTuner).",
                ),
                dtype_input("The dtype of the factors. 'as in the file' leaves each one its own."),
                io.String.Input(
                    "filename_prefix",
                    default="loras/adapter",
                    tooltip="Name in the output folder; a number is added, and no file is overwritten. "
                    "For peft it is a folder.",
                ),
                io.Boolean.Input(
                    "drop_unread",
                    default=False,
                    advanced=True,
                    tooltip="Off: what of the file nothing reads is copied, or an error where the dialect "
                    "changes. On: it is left out, and the report says how much.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The diffusion model that the adapter is for: without it most names cannot be "
                    "translated from one dialect to another.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder, if the adapter changes it: it tells the names of its layers.",
                ),
            ],
            outputs=[report_output()],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        stack: Stack,
        dialect: Any,
        dtype: str,
        filename_prefix: str,
        drop_unread: bool = False,
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        entry = _only(stack)
        shapes = {
            **(weight_shapes(model) if model is not None else {}),
            **(weight_shapes(clip.patcher) if clip is not None else {}),
        }
        result = save_adapter(
            entry.adapter,
            _path(filename_prefix, dialect),
            dialect,
            DTYPES[dtype],
            workflow_metadata(cls.hidden),
            model=shapes or None,
            drop_unread=drop_unread,
            progress=progress(1),
        )
        return with_report(report=describe_saved(result))


def _only(stack: Stack) -> Entry:
    """The one entry, whose adapter is what its file says. Raises LycorisError for any other stack."""
    if len(stack) != 1:
        names = ", ".join(entry.adapter.name for entry in stack) or "none"
        raise LycorisError(
            "a file is written of one adapter",
            got=f"a stack of {len(stack)}: {names}",
            expected="a stack of one",
            hint="Merge the stack into one adapter first",
        )
    (entry,) = stack
    strengths = (entry.strength, entry.strength_of("te"))
    if strengths != (1.0, 1.0) or entry.rules is not None:
        raise LycorisError(
            "strengths and block rules are no part of an adapter's file",
            file=entry.adapter.name,
            got=f"strength {strengths[0]:g}, text encoder {strengths[1]:g}"
            + (f", rules {entry.rules}" if entry.rules is not None else ""),
            expected="strength 1 for both, and no rules",
            hint="Set both strengths to 1 and take the rules off, or merge the stack, which makes them part",
        )
    return entry


def _path(prefix: str, dialect: str) -> Path:
    """Where the file goes; PEFT's has a folder of its own, which carries the number."""
    return output_path(prefix, "" if dialect == "peft" else SAFETENSORS[0])
