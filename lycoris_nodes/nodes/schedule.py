"""The node Schedule LyCORIS Strength."""

from __future__ import annotations

from typing import Any

from ...lycoris_ops import CLOCKS, CURVES, Schedule, ScheduleError, Stack, phrase
from ..host.page import io
from ..schema.checks import checked
from ..schema.inputs import SHAPE, stack_input, stack_output
from ..schema.report import valid
from ..stacks.curves import wired

EXAMPLE = """0:1, 1:1
# out.* = ease in 0 1
# mid = 0.2@0, 0.8@0.5"""
STRAIGHT = {"points": [[0, 1], [1, 1]], "interpolation": "linear"}


class LycorisSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisSchedule",
            display_name="Schedule LyCORIS Strength",
            category=SHAPE,
            description="Changes the strength of every LoRA / LyCORIS in a stack during sampling, as a "
            "whole or block by block. The layers are computed beside the weights in each step, whatever "
            "the mode of Apply is. Text encoders run before sampling, so their strength stays constant.",
            search_aliases=[
                "lora schedule",
                "lora strength over time",
                "lora step",
                "lora curve",
                "lora keyframes",
                "loractl",
                "scheduled lora",
            ],
            inputs=[
                stack_input("The stack whose strengths follow the curve."),
                io.String.Input(
                    "curve",
                    multiline=True,
                    default=EXAMPLE,
                    # This tooltip has no at sign: older front ends take one for a link to another text.
                    tooltip="The curve that multiplies the strength: points as time:value, such as 0:0.2, "
                    f"0.5:0.8, 1:1; or the name of a curve: {', '.join(CURVES)}. A line `pattern = curve` "
                    "is for some blocks only, with patterns as in Weight LyCORIS Blocks. # starts a comment.",
                ),
                io.Combo.Input(
                    "clock",
                    options=list(CLOCKS),
                    default="diffusion",
                    tooltip="What the times mean. diffusion: the share of the whole diffusion, like "
                    "ComfyUI's percent; with a denoise of 0.5 a run begins at 0.5. steps: the share of the "
                    "steps that this run takes.",
                ),
                io.Custom("CURVE").Input(
                    "points",
                    optional=True,
                    tooltip="A curve from ComfyUI's Curve Editor, in place of the one in the text. Lines for "
                    "single blocks stay in force.",
                    # Otherwise the front end puts an editor on the node, and its curve always replaces the
                    # text's. The node's preview in the search has the editor anyway, and needs a curve.
                    extra_dict={"forceInput": True, "default": STRAIGHT},
                ),
            ],
            outputs=[stack_output("The same stack, with strengths that follow the curve.")],
        )

    @classmethod
    def validate_inputs(cls, curve: str | None = None) -> bool | str:
        # `curve` is None where another node gives the text.
        return valid(lambda: Schedule.parse(curve or ""))

    @classmethod
    @checked
    def execute(
        cls, stack: Stack | None = None, curve: str = "", clock: Any = "diffusion", points: Any = None
    ) -> io.NodeOutput:
        schedule = Schedule.parse(curve, clock, None if points is None else wired(points))
        if not schedule:
            raise ScheduleError(
                "E-schedule-absent",
                key="curve",
                got=phrase("R-only-comments") if curve.strip() else phrase("R-empty-text"),
            )
        return io.NodeOutput((stack or Stack()).with_schedule(schedule))
