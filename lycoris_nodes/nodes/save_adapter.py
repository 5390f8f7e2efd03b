"""The node Save LoRA / LyCORIS."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...lycoris_ops import KEPT, WRITTEN_DIALECTS, Stack, describe_saved, own_dialect, phrase, save_adapter
from ..files.loras import adapter_path
from ..host.files import shown_path, workflow_metadata
from ..host.page import io, progress
from ..host.weights import weight_shapes
from ..schema.checks import checked
from ..schema.inputs import AS_IT_IS, DTYPES, NOTHING_SAVED, SAVE, dtype_input, optional_model, stack_input
from ..schema.report import report_output, with_report
from ..stacks.lora_stack import only_adapter


class LycorisSaveAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisSaveAdapter",
            display_name="Save LoRA / LyCORIS",
            category=SAVE,
            description="Saves one LoRA / LyCORIS to the output folder, with the layer names and the dtype "
            "that another tool expects. The new file is read back and compared before it gets its name.",
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
                stack_input(
                    "A stack of one adapter. Its strengths and block rules are multiplied into its "
                    "tensors, so that the file does at strength 1 what it does here."
                ),
                io.Combo.Input(
                    "dialect",
                    display_name="names of",
                    options=[AS_IT_IS, *WRITTEN_DIALECTS],
                    default=AS_IT_IS,
                    tooltip="The tool whose layer names and tensors to write: kohya (sd-scripts, most web "
                    "interfaces), comfy (ComfyUI's own names), peft, diffusers, lycoris (lycoris-lora, "
                    "SimpleTuner) or mlx (mlx-lm). 'as in the file' keeps the names that the layers have, "
                    "and needs no model. ComfyUI's own loaders ignore some kinds (ia3, oftv2, boft_peft) and "
                    "most files in PEFT's names: the report says so.",
                ),
                dtype_input("The dtype to save the tensors in. 'as in the file' keeps each tensor's own."),
                io.String.Input(
                    "filename_prefix",
                    default="loras/adapter",
                    tooltip="Name in the output folder; a number is added, and no file is overwritten. "
                    "For peft and mlx it is a folder.",
                ),
                io.Boolean.Input(
                    "drop_unread",
                    default=False,
                    advanced=True,
                    tooltip="Off: keys of the file that this node cannot read are copied, or are an error "
                    "if the dialect changes. On: they are left out, and the report says how many.",
                ),
                *optional_model(
                    "The diffusion model that the adapter is for. Without it most layer names cannot "
                    "be translated from one dialect to another.",
                    "The text encoder, if the adapter changes it. Without it most names of its "
                    "layers cannot be translated.",
                ),
            ],
            outputs=[report_output()],
        )

    @classmethod
    @checked
    def execute(
        cls,
        stack: Stack | None = None,
        dialect: Any = AS_IT_IS,
        dtype: str = AS_IT_IS,
        filename_prefix: str = "",
        drop_unread: bool = False,
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        if stack is None:
            return with_report(report=NOTHING_SAVED, state="nothing")
        shapes = weight_shapes(model, clip) or None
        adapter = only_adapter(stack, phrase("R-adapter-file"), shapes)
        asked = None if dialect == AS_IT_IS else dialect
        result = save_adapter(
            adapter,
            adapter_path(filename_prefix, asked or own_dialect(adapter.dialect) or KEPT),
            asked,
            DTYPES[dtype],
            workflow_metadata(cls.hidden),
            model=shapes,
            drop_unread=drop_unread,
            # The number was free, but another program may take it meanwhile.
            overwrite=False,
            # The total comes with the first update.
            progress=progress(1),
        )
        return with_report(
            report=describe_saved(replace(result, path=shown_path(result.path))),
            # A file in ComfyUI's own names is for ComfyUI.
            state="partly" if result.in_comfy and result.dialect == "comfy" else "all",
        )
