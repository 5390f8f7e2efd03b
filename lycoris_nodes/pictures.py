"""Pictures as the host's nodes hand them on, and several in one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

OF_A_SET, GAP = 25, 4
"""The most pictures of a set that are shown, and the pixels between them."""


def picture_tensor(picture: Image.Image) -> Tensor:
    """A picture as the host's nodes hand it on, (1, H, W, 3) from 0 to 1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


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
