"""The node LyCORIS Strength Grid."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from ...lycoris_ops import (
    Axis,
    LycorisError,
    Stack,
    block_axis,
    file_axis,
    parse_values,
    phrase,
    strength_axis,
    strength_grid,
)
from ..host.page import io
from ..schema.checks import checked
from ..schema.inputs import SHAPE, count_input, output, stack_input, stack_output
from ..schema.report import valid

Second = Literal["none", "strength", "blocks", "file"]
SECONDS = ("none", "strength", "blocks", "file")
MOST_ROWS = 1000


class LycorisStrengthGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisStrengthGrid",
            display_name="LyCORIS Strength Grid",
            category=SHAPE,
            description="Gives each picture of a batch strengths of its own, all from the same noise. One "
            "run shows which strength, which blocks or which file is best. Apply the stack, sample the "
            "latents, and put the pictures together by Label Grid.",
            search_aliases=[
                "lora xy plot",
                "lora strength test",
                "lora compare",
                "xyz plot",
                "checkpoint comparison",
                "lora grid",
            ],
            inputs=[
                stack_input("The stack to compare strengths of."),
                io.Latent.Input(
                    "latent", tooltip="One latent, empty or a picture's. Each picture begins with it."
                ),
                io.String.Input(
                    "values",
                    default="0, 0.5, 1",
                    tooltip="The strengths, from left to right: 0, 0.5, 1, or 0..1.2 in 5 for five from 0 to "
                    "1.2.",
                ),
                count_input(
                    "row",
                    "Which adapter has these strengths: 1 is the first of the stack. 0: they multiply the "
                    "strengths of all.",
                    most=MOST_ROWS,
                ),
                io.Combo.Input(
                    "second",
                    options=list(SECONDS),
                    default="none",
                    tooltip="What differs from top to bottom. strength: the strength of another adapter. "
                    "blocks: a factor of some blocks. file: one adapter of the stack at a time, such as "
                    "several checkpoints of a training.",
                ),
                io.String.Input(
                    "second_values",
                    default="0, 0.5, 1",
                    optional=True,
                    tooltip="For strength and blocks: the numbers from top to bottom.",
                ),
                io.String.Input(
                    "which",
                    default="",
                    optional=True,
                    tooltip="For strength: the number of the row. For blocks: their names, as in Weight "
                    "LyCORIS Blocks, such as out.* or attn. For file: the numbers of the rows, such as "
                    "1, 2, 3; empty for all.",
                ),
            ],
            outputs=[
                stack_output("The stack with a strength for each picture."),
                output(io.Latent, "latents", "The latents of all pictures as one batch with one noise."),
                output(io.String, "labels", "What the pictures are called, for Label Grid."),
            ],
        )

    @classmethod
    def validate_inputs(cls, values: str | None = None) -> bool | str:
        # None where another node gives the text.
        return valid(lambda: None if values is None else parse_values(values))

    @classmethod
    @checked
    def execute(
        cls,
        latent: Any,
        stack: Stack | None = None,
        values: str = "",
        row: int = 0,
        second: Second = "none",
        second_values: str = "",
        which: str = "",
    ) -> io.NodeOutput:
        stack = stack or Stack()
        across = strength_axis(stack, row, parse_values(values))
        grid = strength_grid(stack, across, second_axis(stack, row, second, second_values, which.strip()))
        return io.NodeOutput(grid.stack, repeated(latent, grid.count), grid.labels)


def second_axis(stack: Stack, row: int, second: Second, values: str, which: str) -> Axis | None:
    """The axis from top to bottom, or None if there is none. The other axis is the strength of `row`.

    Raises LycorisError if `which` does not suit `second`, or names the row that the other axis is for.
    """
    if second == "none":
        return None
    if second == "file":
        rows = [_row(word) for word in which.replace(",", " ").split()]
        # In the pictures of the other files the values would change nothing.
        files = rows or range(1, len(stack) + 1)
        if row in files and len(files) > 1:
            raise LycorisError("E-grid-files-include-row", row=row)
        return file_axis(stack, rows)
    if not which:
        raise LycorisError(
            "E-grid-which-empty",
            expected=phrase("R-number-row") if second == "strength" else phrase("R-blocks-such-out-or-attn"),
        )
    if second == "strength":
        other = _row(which)
        if other == row:
            raise LycorisError("E-grid-axes-same", row=row)
        return strength_axis(stack, other, parse_values(values))
    return block_axis(stack, which, parse_values(values))


def _row(text: str) -> int:
    if not text.isdecimal():
        raise LycorisError("E-grid-which-not-a-row", got=text)
    return int(text)


def repeated(latent: Any, count: int) -> dict[str, Any]:
    """A latent as a batch of `count`, all with the same noise.

    Raises LycorisError for a batch of several, and for latents that are not one tensor.
    """
    samples = latent["samples"]
    if not isinstance(samples, Tensor) or len(samples) != 1:
        raise LycorisError(
            "E-input-latents-several",
            got=phrase("R-batch", count=len(samples))
            if isinstance(samples, Tensor)
            else type(samples).__name__,
        )
    repeated_values = {
        key: value.repeat(count, *(1 for _ in value.shape[1:]))
        for key, value in latent.items()
        if isinstance(value, Tensor) and value.ndim and len(value) == 1
    }
    index = (latent.get("batch_index") or [0])[0]
    return {**latent, **repeated_values, "batch_index": [index] * count}
