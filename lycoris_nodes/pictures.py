"""Pictures of trainings and plans, drawn with what the host always has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..lycoris_ops import History, Plan, Survey

WIDTH, HEIGHT = 800, 450
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 34, 30
BLUE, ORANGE, GREY, BLACK = (31, 119, 180), (255, 127, 14), (225, 225, 225), (40, 40, 40)
KINDS = (BLUE, ORANGE, (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (227, 119, 194))
BINS = 50
"""The most points of the curve of the training's losses: each is the mean of the steps between two."""
SHOWN = 60
"""The most layers of a plan that are drawn: those with the most parameters."""
ROW = 18
OF_A_SET, GAP = 25, 4
"""The most pictures of a set that are shown, and the pixels between them."""

Point = tuple[float, float]


def picture_tensor(picture: Image.Image) -> Tensor:
    """A picture as the host's nodes hand it on, (1, H, W, 3) from 0 to 1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def curves(history: History, steps: int, title: str) -> Image.Image:
    """The losses of a training of so many steps: in blue while training, in orange the held-out ones."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default()
    trained, held = _binned(history.losses), [(float(step), loss) for step, loss in history.validation]
    values = [loss for _, loss in (*trained, *held) if math.isfinite(loss)] or [0.0]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)

    def place(point: Point) -> Point:
        x = LEFT + (WIDTH - LEFT - RIGHT) * point[0] / max(1, steps)
        return x, TOP + (HEIGHT - TOP - BOTTOM) * (high - point[1]) / (high - low)

    for share in range(5):
        loss, step = low + (high - low) * share / 4, steps * share / 4
        x, y = place((step, loss))
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=GREY)
        draw.text((LEFT - 8, y), f"{loss:.4g}", BLACK, font, anchor="rm")
        draw.text((x, HEIGHT - BOTTOM + 6), f"{step:.0f}", BLACK, font, anchor="ma")
    for points, colour in ((trained, BLUE), (held, ORANGE)):
        placed = [place(point) for point in points]
        if len(placed) > 1:
            draw.line(placed, fill=colour, width=2, joint="curve")
        for x, y in placed if len(placed) == 1 or colour == ORANGE else ():
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
    draw.text((LEFT, 10), title, BLACK, font)
    draw.text((WIDTH - RIGHT - 90, 10), "training", BLUE, font, anchor="ra")
    if held:
        draw.text((WIDTH - RIGHT, 10), "held out", ORANGE, font, anchor="ra")
    return picture


def beside(first: Image.Image, second: Image.Image) -> Image.Image:
    """Two pictures beside each other, the second in the height of the first."""
    width = round(second.width * first.height / second.height)
    both = Image.new("RGB", (first.width + width, first.height), "white")
    both.paste(first, (0, 0))
    both.paste(second.resize((width, first.height)), (first.width, 0))
    return both


def sheet(pictures: Sequence[Tensor]) -> Image.Image:
    """Small pictures (h, w, 3) in bytes in a square, the first few of many."""
    shown = pictures[:OF_A_SET]
    columns = math.ceil(math.sqrt(len(shown)))
    side = max(max(one.shape[:2]) for one in shown) + GAP
    rows = -(-len(shown) // columns)
    picture = Image.new("RGB", (side * columns + GAP, side * rows + GAP), "white")
    for number, one in enumerate(shown):
        row, column = divmod(number, columns)
        height, width = one.shape[:2]
        left, top = (
            GAP + column * side + (side - GAP - width) // 2,
            GAP + row * side + (side - GAP - height) // 2,
        )
        picture.paste(Image.fromarray(one.numpy()), (left, top))
    return picture


def plan_picture(plan: Plan) -> Image.Image:
    """The parameters of each layer as a bar, coloured by algorithm, with its rank and its gain."""
    rows = plan.rows
    if len(rows) > SHOWN:
        rows = tuple(sorted(rows, key=lambda row: -row.parameters)[:SHOWN])
    picture = Image.new("RGB", (WIDTH, TOP + ROW * (len(rows) + 1) + 10), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default()
    kinds = list(dict.fromkeys(row.algorithm for row in plan))
    colours = {kind: KINDS[index % len(KINDS)] for index, kind in enumerate(kinds)}
    most = max((row.parameters for row in rows), default=1)
    left, right = 330, 120
    title = f"{plan.parameters:,} parameters in {len(plan)} layers"
    if len(rows) < len(plan):
        title += f", the largest {len(rows)} shown"
    draw.text((10, 10), title, BLACK, font)
    x = WIDTH - 10.0
    for kind in reversed(kinds):
        draw.text((x, 10), kind, colours[kind], font, anchor="ra")
        x -= draw.textlength(kind, font) + 14
    for number, row in enumerate(rows):
        y = TOP + ROW * number
        name = row.path if len(row.path) <= 52 else f"...{row.path[-49:]}"
        draw.text((left - 8, y + ROW / 2), name, BLACK, font, anchor="rm")
        end = left + (WIDTH - left - right) * row.parameters / most
        draw.rectangle([left, y + 3, max(end, left + 1), y + ROW - 3], fill=colours[row.algorithm])
        words = "" if row.rank is None else f"rank {row.rank}"
        words += "" if row.gain is None else f"  {row.gain:.1%}"
        draw.text((end + 6, y + ROW / 2), words, BLACK, font, anchor="lm")
    return picture


def blocks_picture(found: Survey) -> Image.Image:
    """Bars for the share that each block has of each adapter's change; without adapters, of the weights."""
    font = ImageFont.load_default()
    names, left, right, most = list(found.blocks), 250, 80, 6
    adapters = found.adapters[:most]
    row = max(ROW, 7 * len(adapters) + 5)
    picture = Image.new("RGB", (WIDTH, TOP + 18 * len(adapters) + row * len(names) + 12), "white")
    draw = ImageDraw.Draw(picture)
    title = "share of the squared norm of the change, by block" if adapters else "weights by block"
    draw.text((10, 10), title, BLACK, font)
    for number, adapter in enumerate(adapters):
        draw.text((10, TOP + 18 * number - 4), adapter.entry.name, KINDS[number % len(KINDS)], font)
    top = TOP + 18 * len(adapters)
    values = [[adapter.share(name) for adapter in adapters] or [found.blocks[name]] for name in names]
    largest = max((value for each in values for value in each), default=0) or 1
    for place, (name, each) in enumerate(zip(names, values, strict=True)):
        y = top + row * place
        draw.text(
            (left - 8, y + row / 2), name if len(name) < 40 else f"...{name[-36:]}", BLACK, font, anchor="rm"
        )
        high = (row - 4) / len(each)
        for number, value in enumerate(each):
            end = left + (WIDTH - left - right) * value / largest
            low = y + 2 + high * number
            draw.rectangle([left, low, max(end, left + 1), low + high - 1], fill=KINDS[number % len(KINDS)])
        words = ", ".join(f"{value:.1%}" for value in each[:2]) if adapters else f"{each[0]}"
        draw.text(
            (left + (WIDTH - left - right) * max(each) / largest + 6, y + row / 2),
            words,
            BLACK,
            font,
            anchor="lm",
        )
    return picture


def _binned(losses: Sequence[tuple[int, float]]) -> list[Point]:
    """The mean step and loss of at most `BINS` runs of steps."""
    width = max(1, -(-len(losses) // BINS))
    found: list[Point] = []
    for start in range(0, len(losses), width):
        part = losses[start : start + width]
        found.append((sum(step for step, _ in part) / len(part), sum(loss for _, loss in part) / len(part)))
    return found
