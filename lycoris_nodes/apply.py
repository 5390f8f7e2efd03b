"""Apply LyCORIS Stack."""

from __future__ import annotations

from typing import Any

from ..lycoris_ops import Stack, describe, resolve
from .host import add_patches, io, weight_shapes
from .patch import build_patches
from .wires import CATEGORY, report_output, stack_input, with_report


class LycorisApplyStack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisApplyStack",
            display_name="Apply LyCORIS Stack",
            category=CATEGORY,
            description="Applies every LoRA / LyCORIS of a stack to a model and its text encoder in one "
            "pass per weight, and reports what matched and what did not.",
            search_aliases=["apply lora", "apply lycoris", "lora stack", "lora report", "load lora"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The diffusion model to change; the original stays as it is."
                ),
                stack_input(tooltip="What to apply; an empty stack changes nothing."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder to change. Without it, text-encoder layers are left out "
                    "and reported.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["merge"],
                    default="merge",
                    tooltip="merge: the change is added to the weights when the model is loaded, and "
                    "sampling costs nothing more.",
                ),
                io.Boolean.Input(
                    "strict",
                    default=False,
                    tooltip="Off: layers that meet nothing are reported and the rest is applied. "
                    "On: any such layer is an error.",
                ),
            ],
            outputs=[
                io.Model.Output("MODEL", display_name="model", tooltip="The model with the stack applied."),
                io.Clip.Output(
                    "CLIP",
                    display_name="clip",
                    tooltip="The text encoder with the stack applied; empty where none is connected.",
                ),
                report_output(),
            ],
        )

    @classmethod
    def execute(cls, model: Any, stack: Stack, mode: str, strict: bool, clip: Any = None) -> io.NodeOutput:
        model_shapes = weight_shapes(model)
        clip_shapes = weight_shapes(clip.patcher) if clip is not None else {}
        shapes = {**model_shapes, **clip_shapes}
        resolution = resolve(stack, shapes, absent_because="no CLIP is connected")
        resolution.check(strict=strict)
        pairs = resolution.pairs()
        results = (_patched(model, model_shapes, pairs), _patched(clip, clip_shapes, pairs))
        return with_report(*results, report=describe(resolution))


def _patched(patchable: Any, shapes: Any, pairs: Any) -> Any:
    """A clone with the stack's patches, or the very same object where nothing changes it."""
    patches = build_patches(shapes, pairs)
    if not patches:
        return patchable
    clone = patchable.clone()
    add_patches(clone, patches)
    return clone
