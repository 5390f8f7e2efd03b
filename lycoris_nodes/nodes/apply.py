"""The node Apply LyCORIS Stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...lycoris_ops import Stack, describe, mask_picture, phrase, resolve, verdict
from ..apply.bypass import add_bypass
from ..apply.experts import CHOICES, of_expert
from ..apply.experts import Choice as ExpertChoice
from ..apply.left_whole import LeftWhole
from ..apply.modes import Choice, Mode, choose, describe_choice, without_mask
from ..apply.patch import build_patches
from ..host.page import io
from ..host.passes import forget_between_samplings
from ..host.patching import add_patches, attach_metadata
from ..host.weights import patcher_of, weight_shapes
from ..schema.checks import checked
from ..schema.inputs import LOAD, NOTHING_CHANGED, advanced, stack_input
from ..schema.report import Note, report_output, with_report


class LycorisApplyStack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisApplyStack",
            display_name="Apply LyCORIS Stack",
            category=LOAD,
            description="Applies every LoRA / LyCORIS of a stack to a model and its text encoder, and "
            "reports which of their layers matched and which did not.",
            search_aliases=[
                "apply lora",
                "apply lycoris",
                "lora stack",
                "lora report",
                "merge lora",
                "multi lora",
            ],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The diffusion model to change; the original stays as it is."
                ),
                stack_input("What to apply; no stack, or an empty one, changes nothing."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder to change. Without it, text-encoder layers are left out "
                    "and reported.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["merge", "bypass", "auto"],
                    default="merge",
                    tooltip="merge: the change is added to the weights when the model is loaded, and "
                    "sampling takes no longer. bypass: the weights stay as they are, and each step computes "
                    "the change beside them. auto: bypass for quantised weights and on low VRAM, else merge.",
                ),
                io.Boolean.Input(
                    "strict",
                    default=False,
                    tooltip="Off: adapter layers that cannot be matched with the model are reported, and the "
                    "rest is applied. On: any such layer is an error.",
                ),
                *advanced(
                    io.Combo.Input(
                        "expert",
                        options=list(CHOICES),
                        default="auto",
                        tooltip="For pairs of files, as for Wan 2.2: which of the two experts this model is. "
                        "auto: by the name of the model's file.",
                    )
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output("MODEL", display_name="model", tooltip="The model with the stack applied."),
                io.Clip.Output(
                    "CLIP",
                    display_name="clip",
                    tooltip="The text encoder with the stack applied; empty if none is connected.",
                ),
                report_output(),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        stack: Stack | None = None,
        mode: Mode = "merge",
        strict: bool = False,
        clip: Any = None,
        expert: ExpertChoice = "auto",
    ) -> io.NodeOutput:
        connected, whole_stack = stack is not None, stack or Stack()
        stack, of_pairs, known = of_expert(whole_stack, expert, model, cls.hidden)
        changed = [(linked, weight_shapes(linked)) for linked in (model, clip) if linked is not None]
        resolution = resolve(stack, weight_shapes(model, clip), absent_because=phrase("R-no-clip-connected"))
        resolution.check(strict=strict)
        pairs = resolution.pairs()
        choices = [choose(patcher_of(linked), own, pairs, mode, strict=strict) for linked, own in changed]
        note = Note(cls.hidden)
        reports = [LeftWhole(choice.tokens, note.say, strict=strict) for choice in choices]
        # As after the host's loaders in a row, of which the last one that has metadata counts.
        metadata = next(
            (
                entry.adapter.metadata
                for entry in reversed(stack.entries)
                if not entry.off and entry.adapter.metadata
            ),
            {},
        )
        results = [
            _patched(linked, own, choice, left_whole, metadata)
            for (linked, own), choice, left_whole in zip(changed, choices, reports, strict=True)
        ]
        resolution = resolution.masked(pair for choice in choices for pair in choice.masked)
        chosen, unmasked = describe_choice(mode, choices, whole_stack), without_mask(choices)
        full, brief = (
            "\n\n".join(filter(None, (of_pairs, unmasked, describe(resolution, whole=full), chosen)))
            for full in (True, False)
        )
        if not connected:
            full = brief = NOTHING_CHANGED
        return with_report(
            *results,
            *([None] if clip is None else []),
            report=full,
            brief=brief,
            state="partly" if unmasked or not known else verdict(resolution)[0],
            picture=mask_picture(stack),
            note=note,
        )


def _patched(
    linked: Any,
    shapes: Mapping[str, Sequence[int]],
    choice: Choice,
    left_whole: LeftWhole,
    metadata: Mapping[str, str],
) -> Any:
    """A clone with the patches, bypass and metadata of a stack; the very same object where it has none."""
    patches = build_patches(shapes, choice.merged)
    if not patches and not choice.bypassed and not metadata:
        return linked
    clone = linked.clone()
    if metadata:
        attach_metadata(clone, metadata)
    if patches:
        add_patches(clone, patches)
    if choice.bypassed:
        # Last, because the host's `add_patches` runs the injections of a clone of a loaded model.
        add_bypass(patcher_of(clone), choice.bypassed, choice.tokens, left_whole)
    forget_between_samplings(patcher_of(clone))
    return clone
