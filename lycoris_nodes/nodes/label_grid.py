"""The node Label Grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...lycoris_ops import LycorisError, phrase, text_font
from ..host.page import io, picture_tensor
from ..schema.checks import checked
from ..schema.inputs import SHAPE, output

SHARE = 14
"""The shorter side of a picture is this many letters high."""
SMALLEST = 12
"""The least height of a letter, in pixels."""


class LycorisLabelGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LycorisLabelGrid",
            display_name="Label Grid",
            category=SHAPE,
            description="Puts the pictures of LyCORIS Strength Grid together into one, with the name of each "
            "row and column.",
            search_aliases=["xy plot", "image grid", "contact sheet", "labels"],
            inputs=[
                io.Image.Input("pictures", tooltip="The pictures, row by row."),
                io.String.Input(
                    "labels",
                    force_input=True,
                    tooltip="A first line with the names of the columns, each behind a tab, then a line for "
                    "each row.",
                ),
            ],
            outputs=[output(io.Image, "picture", "All pictures in one, with their names.")],
        )

    @classmethod
    @checked
    def execute(cls, pictures: Any, labels: str) -> io.NodeOutput:
        columns, rows = named(labels)
        if not isinstance(pictures, Tensor) or pictures.ndim != 4:
            raise LycorisError("E-input-pictures-unusable")
        count = len(columns) * max(1, len(rows))
        if len(pictures) != count:
            raise LycorisError(
                "E-labels-miscount",
                pictures=len(pictures),
                names=count,
                columns=len(columns),
                rows=max(1, len(rows)),
            )
        return io.NodeOutput(picture_tensor(drawn(pictures, columns, rows)))


def named(labels: str) -> tuple[list[str], list[str]]:
    """The names of the columns and of the rows. Raises LycorisError where there are none."""
    first, *rows = labels.splitlines() or [""]
    _, *columns = first.split("\t")
    if not columns:
        raise LycorisError("E-labels-without-columns", got=labels[:40] or phrase("R-empty-text"))
    return columns, rows


def drawn(pictures: Tensor, columns: Sequence[str], rows: Sequence[str]) -> Image.Image:
    """The pictures (N, H, W, 3) in one, row by row, with names of columns above and of rows on the left.

    The name of a row gets about the width and height of a picture; the end of a longer one is left out.
    """
    _, height, width, _ = pictures.shape
    font: Any = text_font("".join((*columns, *rows)), max(SMALLEST, min(height, width) // SHARE))
    line = round(sum(font.getbbox("Ag")[1::2]))
    beside = [shortened(wrapped(name, font, width), max(1, height // line)) for name in rows]
    side = max((round(font.getlength(text)) + line for lines in beside for text in lines), default=0)
    top = line * max(len(wrapped(name, font, width)) for name in columns)
    canvas = Image.new("RGB", (side + width * len(columns), top + height * max(1, len(rows))), "white")
    pen = ImageDraw.Draw(canvas)
    for index, name in enumerate(columns):
        text = "\n".join(wrapped(name, font, width))
        pen.multiline_text((side + width * (index + 0.5), top / 2), text, "black", font, "mm", 0, "center")
    for index, lines in enumerate(beside):
        text = "\n".join(lines)
        pen.multiline_text((side / 2, top + height * (index + 0.5)), text, "black", font, "mm", 0, "center")
    values = (255 * pictures[..., :3].float().clamp(0, 1)).round().to(torch.uint8).cpu().numpy()
    for index, value in enumerate(values):
        row, column = divmod(index, len(columns))
        canvas.paste(Image.fromarray(value), (side + width * column, top + height * row))
    return canvas


def wrapped(name: str, font: Any, width: int) -> list[str]:
    """A name in lines no wider than a picture, broken at spaces, or inside words that are too wide."""
    lines = [""]
    for word in name.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines += [word] if lines[-1] else []
        lines[-1] = word
        while font.getlength(lines[-1]) > width and len(lines[-1]) > 1:
            end = next(
                n for n in range(len(lines[-1]), 0, -1) if n == 1 or font.getlength(lines[-1][:n]) <= width
            )
            lines[-1:] = [lines[-1][:end], lines[-1][end:]]
    return lines


def shortened(lines: list[str], most: int) -> list[str]:
    """The first lines of a name, with a mark where others are left out."""
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][:-1]}…"]
