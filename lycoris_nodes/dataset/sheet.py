"""The pictures of a data set in one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

OF_A_SET, GAP = 25, 4
"""The most pictures of a set that are shown, and the pixels between them."""


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
