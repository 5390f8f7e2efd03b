"""The node Mask LyCORIS Stack."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ...lycoris_ops import LycorisError, Mask, Picture, Stack, mask_picture, parse_spans, phrase
from ..host.page import io, picture_tensor, shown_picture
from ..schema.checks import checked
from ..schema.inputs import (
    SHAPE,
    check_strength,
    count_input,
    output,
    stack_input,
    stack_output,
    strength_input,
)
from ..schema.report import valid

Text = Literal["off", "whole"]
SLACK = 0.01
"""How far values of a mask may be beyond 0 and 1, as after resizing."""


class LycorisMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        outside = strength_input(
            "outside", "What multiplies the strength outside the mask: 0 for nothing there, 0.3 for a little."
        )
        outside.default = 0.0
        return io.Schema(
            node_id="LycorisMask",
            display_name="Mask LyCORIS Stack",
            category=SHAPE,
            description="Lets every LoRA / LyCORIS of a stack act only in a part of the picture, or in some "
            "frames of a video. Join several such stacks by Combine: one pass of the model serves all of "
            "them.",
            search_aliases=[
                "regional lora",
                "lora mask",
                "masked lora",
                "lora area",
                "couple",
                "two characters",
                "lora frames",
            ],
            inputs=[
                stack_input("The stack whose adapters act in the mask."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where they act: white for the whole strength, black for none. Any size; it is "
                    "stretched over the picture. A batch has one for each frame of a video. Without a link: "
                    "the whole picture.",
                ),
                io.String.Input(
                    "frames",
                    default="",
                    optional=True,
                    tooltip="For videos: the frames in which they act, counted from 0, such as 0-16, 40-. "
                    "Empty: all.",
                ),
                count_input(
                    "soft_edge",
                    "By how many pixels of the mask its edge is blurred to each side. 0: no blur.",
                    most=4096,
                ),
                outside,
                io.Combo.Input(
                    "text",
                    options=["off", "whole"],
                    default="off",
                    tooltip="For text encoders, and for layers that work on text, time or sound. These have "
                    "no place in the picture. off: they do nothing. whole: they act for the whole picture.",
                ),
            ],
            outputs=[
                stack_output("The same stack, acting in the mask."),
                output(io.Image, "picture", "The masks of the stack over each other, with their names."),
            ],
        )

    @classmethod
    def validate_inputs(cls, frames: str | None = None, outside: float | None = None) -> bool | str:
        # None where another node gives the value.
        return valid(lambda: parse_spans(frames or ""), lambda: check_strength("outside", outside))

    @classmethod
    @checked
    def execute(
        cls,
        stack: Stack | None = None,
        mask: Any = None,
        frames: str = "",
        soft_edge: int = 0,
        outside: float = 0.0,
        text: Text = "off",
    ) -> io.NodeOutput:
        spans = parse_spans(frames)
        if mask is None and not spans:
            raise LycorisError("E-mask-and-frames-absent")
        weights = Tensor([[[1.0]]]) if mask is None else softened(planes(mask), soft_edge)
        check_strength("outside", outside)
        drawn_mask = Mask(weights, spans, outside, text=text == "whole")
        masked = (stack or Stack()).with_mask(drawn_mask)
        picture = mask_picture(masked) or Picture(phrase("R-stack-empty"), [])
        drawn = picture.image()
        return io.NodeOutput(masked, picture_tensor(drawn), ui=shown_picture(drawn, cls))


def planes(mask: Any) -> Tensor:
    """A mask of the host as planes (n, h, w). Values that are a little beyond 0 and 1 are clamped.

    Raises LycorisError for a tensor of another form.
    """
    if not isinstance(mask, Tensor):
        raise LycorisError("E-input-mask-unusable", got=type(mask).__name__)
    # Some packs give masks of bool.
    values = mask if mask.is_floating_point() else mask.float()
    values = values[:, 0] if values.ndim == 4 and values.shape[1] == 1 else values
    values = values[None] if values.ndim == 2 else values
    near = values.clamp(0, 1)
    return near if bool(((values - near).abs() <= SLACK).all()) else values


def softened(weights: Tensor, pixels: int) -> Tensor:
    """Planes (n, h, w) with edges blurred by `pixels` to each side.

    Each value becomes the mean of a square around it, as if the values at the border went on outside.
    """
    if not pixels or weights.ndim != 3 or not weights.numel():
        return weights
    # Some devices have no float64.
    exact = weights.cpu().double()
    return _mean_around(_mean_around(exact, pixels, 1), pixels, 2).float().clamp(0, 1)


def _mean_around(values: Tensor, pixels: int, axis: int) -> Tensor:
    """The mean of 2 pixels + 1 values along an axis, from cumulative sums: any width takes the same time."""
    end = values.shape[axis] - 1
    at = torch.arange(end + 1, device=values.device)
    first, last = (at - pixels).clamp(min=0), (at + pixels).clamp(max=end)
    sums = torch.cat([torch.zeros_like(values.narrow(axis, 0, 1)), values.cumsum(axis)], axis)
    inside = sums.index_select(axis, last + 1) - sums.index_select(axis, first)
    shape = (-1, 1) if axis == 1 else (-1,)
    before, after = ((pixels - at).clamp(min=0), (at + pixels - end).clamp(min=0))
    border = before.view(shape) * values.narrow(axis, 0, 1) + after.view(shape) * values.narrow(axis, end, 1)
    return (inside + border) / (2 * pixels + 1)
