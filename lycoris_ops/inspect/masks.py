"""Draw the masks of a stack in one picture."""

from __future__ import annotations

import math

from torch import Tensor

from ..changes.place import Mask
from ..charts import INK, Picture, Planes, colour_of, of_planes
from ..messages import phrase
from ..report.words import few, plain_name
from ..stack.stack import Entry, Stack

WIDTH = 280
"""The picture's width in pixels: about the width of the node that shows it, so that its words can be read."""
CELLS = 32
"""The most rows and columns that are drawn."""
FRAMES = 4
"""The most frames of a video that are drawn."""


def mask_picture(stack: Stack) -> Picture | None:
    """A stack's masks on top of each other, one colour each, with their adapters' names; None without masks.

    For a video, at most FRAMES evenly spaced frames are drawn. Factors are drawn by their absolute values, as
    shares of the largest, or of 1 if that is larger.
    """
    masks: dict[Mask, list[Entry]] = {}
    for entry in stack:
        if entry.mask is not None:
            masks.setdefault(entry.mask, []).append(entry)
    if not masks:
        return None
    height, width = max((tuple(mask.weights.shape[1:]) for mask in masks), key=math.prod)
    scale = min(1.0, CELLS / max(height, width))
    grid = (max(1, round(height * scale)), max(1, round(width * scale)))
    count = max(map(_frames, masks))
    moments = [frame / max(1, count - 1) for frame in _even(count)]
    planes = [[_drawn(mask, moment, count, grid) for moment in moments] for mask in masks]
    colours = [colour_of(number) for number in range(len(masks))]
    shares = [
        [(_shares(mask[at]), colour) for mask, colour in zip(planes, colours, strict=True)]
        for at in range(len(moments))
    ]
    titles = [phrase("R-chart-frame", frame=frame) if count > 1 else "" for frame in _even(count)]
    names = [
        (few([plain_name(entry.name) for entry in entries]), colour)
        for entries, colour in zip(masks.values(), colours, strict=True)
    ]
    if free := [plain_name(entry.name) for entry in stack if entry.mask is None]:
        names.append((phrase("R-chart-everywhere", names=few(free)), INK))
    return of_planes("", names, Planes(titles, shares), WIDTH)


def _even(count: int) -> list[int]:
    """The numbers of at most FRAMES of `count` frames, evenly spaced from the first to the last."""
    most = min(count, FRAMES)
    return [round(step * (count - 1) / max(1, most - 1)) for step in range(most)]


def _frames(mask: Mask) -> int:
    """How many frames are needed to show a mask: up to the end of its last span, and one more."""
    named = [1 + (first if last is None else last + 1) for first, last in mask.spans]
    within = _frames(mask.within) if mask.within is not None else 1
    return max(len(mask.weights), within, *named)


def _drawn(mask: Mask, moment: float, count: int, grid: tuple[int, int]) -> Tensor:
    """The factors of a mask (h, w) at a moment of the video, from 0 to 1."""
    own, frame = round(moment * (len(mask.weights) - 1)), round(moment * (count - 1))
    inside = not mask.spans or any(
        first <= frame <= (math.inf if last is None else last) for first, last in mask.spans
    )
    shares = Mask(mask.weights[own : own + 1]).on(grid) * float(inside)
    factors = mask.outside + shares * (1 - mask.outside)
    return factors if mask.within is None else factors * _drawn(mask.within, moment, count, grid)


def _shares(factors: Tensor) -> list[list[float]]:
    shares = factors.abs() / max(1.0, float(factors.abs().max()))
    return [[float(share) for share in row] for row in shares]
