"""Draws the icon and the banner of the registry: `python -m tests.harness.emblem`, in the environment.

They show what an adapter is: a column times a row is a matrix, the change of a weight.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .facts import ROOT

ICON, BANNER = ROOT / "docs" / "icon.png", ROOT / "docs" / "banner.png"
ICON_SIZE = (400, 400)
"""The largest that the registry takes."""
BANNER_SIZE = (1680, 720)
"""21 to 9, as the registry shows it."""
GROUND, DARK = (23, 27, 38), (38, 44, 60)
COLUMN, ROW, PRODUCT = (255, 176, 59), (82, 170, 255), (240, 92, 150)
UP = np.array([0.35, 1.0, 0.6, 0.25, 0.85])
DOWN = np.array([0.9, 0.3, 0.65, 1.0, 0.45])
FINER = 4
"""Drawn this much larger and then reduced, for smooth corners."""


def mixed(low: tuple[int, ...], high: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(round(a + (b - a) * share) for a, b in zip(low, high, strict=True))


def draw_product(canvas: ImageDraw.ImageDraw, left: float, top: float, side: float) -> None:
    """The column, the row and their product, in a square of this side."""
    pitch = side / (len(UP) + 1.35)
    cell, start = pitch * 0.86, pitch * 1.35

    def put(x: float, y: float, colour: tuple[int, ...]) -> None:
        box = (left + x, top + y, left + x + cell, top + y + cell)
        canvas.rounded_rectangle(box, radius=cell * 0.2, fill=colour)

    for i, up in enumerate(UP):
        put(0, start + i * pitch, mixed(DARK, COLUMN, up))
        for j, down in enumerate(DOWN):
            put(start + j * pitch, start + i * pitch, mixed(DARK, PRODUCT, up * down))
    for j, down in enumerate(DOWN):
        put(start + j * pitch, 0, mixed(DARK, ROW, down))


def icon() -> Image.Image:
    side = ICON_SIZE[0] * FINER
    picture = Image.new("RGBA", (side, side))
    canvas = ImageDraw.Draw(picture)
    canvas.rounded_rectangle((0, 0, side - 1, side - 1), radius=side * 0.18, fill=GROUND)
    draw_product(canvas, side * 0.14, side * 0.14, side * 0.73)
    return picture.resize(ICON_SIZE, Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    width, height = (size * FINER for size in BANNER_SIZE)
    picture = Image.new("RGB", (width, height), GROUND)
    canvas = ImageDraw.Draw(picture)
    draw_product(canvas, height * 0.18, height * 0.18, height * 0.65)
    left = height * 0.98
    for text, down, size, colour in (
        ("LyCORIS nodes", 0.31, 0.165, (240, 243, 250)),
        ("LoRA, LoHa, LoKr, OFT and the rest,", 0.52, 0.066, (176, 186, 206)),
        ("stacked, merged and trained in ComfyUI", 0.615, 0.066, (176, 186, 206)),
    ):
        canvas.text((left, height * down), text, fill=colour, font=ImageFont.load_default(height * size))
    return picture.resize(BANNER_SIZE, Image.Resampling.LANCZOS)


def main() -> None:
    for picture, path in ((icon(), ICON), (banner(), BANNER)):
        picture.save(path, optimize=True)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
