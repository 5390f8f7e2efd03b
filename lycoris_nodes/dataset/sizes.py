"""The sizes that pictures are trained in: few, on the model's grid, and near to each picture's shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

STEP = 64
"""The least step between lengths of a side in pixels, as in most trainers."""
LONGEST = 2
"""The longest side, as a multiple of the resolution."""

Pixels = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class PictureFit:
    """How a picture is made to fit: `box` is cut out of it and resized to `size`."""

    source: Pixels
    size: Pixels
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, in pixels of the picture."""

    @property
    def scale(self) -> float:
        """Pixels of the result for one pixel of the picture."""
        return self.size[0] / (self.box[2] - self.box[0])

    @property
    def corner(self) -> Pixels:
        """Left and top of the cut-out part, in pixels of the resized picture. SDXL is conditioned on them."""
        return round(self.box[0] * self.scale), round(self.box[1] * self.scale)

    @property
    def lost(self) -> float:
        """The share of the picture that is cut off."""
        left, top, right, bottom = self.box
        return 1 - (right - left) * (bottom - top) / (self.source[0] * self.source[1])


def step_of(grid: int) -> int:
    """The step between lengths of a side: the smallest multiple of the model's grid that is at least 64."""
    return grid * math.ceil(STEP / grid)


@cache
def sizes_of(resolution: int, step: int) -> list[Pixels]:
    """Widths and heights in steps, up to `LONGEST` times the resolution, with at most resolution^2 pixels.

    If a square of one step has more pixels than that, it is the only size.
    """
    sides = range(step, max(step, LONGEST * resolution) + 1, step)
    sizes = [(width, height) for width in sides for height in sides if width * height <= resolution**2]
    return sizes or [(step, step)]


def fit(source: Pixels, resolution: int, step: int, *, enlarge: bool) -> PictureFit:
    """Fit a picture of this width and height: its middle is trained, in the size that keeps most of it.

    This size has the largest product of its number of pixels and the share of the picture that is not cut
    off. Without `enlarge` it has no more pixels than the picture, unless a square of one step has more.
    """
    width, height = source
    if not enlarge:
        resolution = min(resolution, math.isqrt(width * height))
    shape = width / height

    def kept(size: Pixels) -> tuple[float, float]:
        share = min(size[0] / size[1] / shape, shape * size[1] / size[0])
        # Rounded: if two sizes keep equally many pixels, the one that cuts less wins.
        return round(share * size[0] * size[1], 3), share

    return middle(source, max(sizes_of(resolution, step), key=kept))


def middle(source: Pixels, size: Pixels) -> PictureFit:
    """The largest part of a picture, in its middle, that has the shape of a size."""
    width, height = source
    scale = max(size[0] / width, size[1] / height)
    # Rounding must not push the box over the edge.
    box = min(width, size[0] / scale), min(height, size[1] / scale)
    left, top = (width - box[0]) / 2, (height - box[1]) / 2
    return PictureFit(source, size, (left, top, left + box[0], top + box[1]))
