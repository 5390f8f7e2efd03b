"""Strengths that differ by place and sample: masks, factors for pictures, and which tokens are places."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import LycorisError
from ..maths.shapes import Shape

Span = tuple[int, int | None]
"""The first and the last frame of a span, counted from 0; None for no end."""

SPANS = "frames from 0 such as 0-16, 40-"
KEPT = 64
"""A `Where` keeps this many of its newest results. A model needs one for each of its grids."""


def parse_spans(text: str) -> tuple[Span, ...]:
    """The spans of a text such as `0-16, 40-`. An empty text gives (), which means all frames.

    Raises LycorisError for a text that is no span, and for a span that ends before it begins.
    """
    spans: list[Span] = []
    for piece in filter(None, (piece.strip() for piece in re.split(r"[,;\n]", text))):
        match = re.fullmatch(r"(\d+)\s*(?:(-)\s*(\d+)?)?", piece)
        if match is None:
            raise LycorisError("E-frames-not-understood", got=piece, expected=SPANS)
        first, dash, last = match.groups()
        end = int(last) if last else None if dash else int(first)
        if end is not None and end < int(first):
            raise LycorisError("E-frames-end-before-begin", got=piece, expected=SPANS)
        spans.append((int(first), end))
    return tuple(spans)


@dataclass(frozen=True)
class Crop:
    """The part of a picture that a pass works on, where it does not work on the whole.

    Raises LycorisError where `kept` and `size` have different numbers of axes, or an axis keeps nothing.
    """

    size: Shape
    """The size of the whole latent, (h, w) or (frames, h, w)."""
    kept: tuple[range | tuple[int, ...], ...]
    """For each axis, the indices that are kept."""

    def __post_init__(self) -> None:
        if len(self.kept) != len(self.size) or not all(self.kept):
            raise LycorisError(
                "E-crop-leaves-nothing", size=list(self.size), got=str([len(axis) for axis in self.kept])
            )

    def of(self, full: Tensor) -> Tensor:
        """The kept part of a tensor (frames, h, w) of the whole latent's size."""
        for axis, kept in enumerate(self.kept, start=full.ndim - len(self.kept)):
            full = full.index_select(axis, torch.tensor(kept))
        return full


@dataclass(frozen=True)
class Places:
    """Which tokens of a layer are places, in one pass.

    Each sample has `before` other tokens, then the tokens of `grid`, (h, w) or (frames, h, w), row by row,
    then `after` others. A convolution needs no grid, because its output has one. Raises LycorisError for no
    samples, a wrong number of crops, and impossible sizes.
    """

    pictures: tuple[int, ...]
    """For each sample of the pass the number of its picture, from 0: one picture may have several samples, as
    with classifier-free guidance."""
    grid: Shape = ()
    before: int = 0
    after: int = 0
    pace: int | Shape = 1
    """How many video frames each frame of the grid covers; the first covers one. Several numbers apply to the
    grid's frames in turn, the first frame included, and then repeat."""
    of: int = 0
    """How many pictures there are in all: a pass may have only some. 0: one more than the largest number in
    `pictures`."""
    crops: tuple[Crop, ...] = ()
    """For each sample the part of its picture that `grid` covers; () where each has the whole."""
    everywhere: bool = False
    """Whether masks have the factor 1 everywhere: it is not known which tokens are places."""

    def __post_init__(self) -> None:
        if len(self.crops) not in (0, len(self.pictures)):
            raise LycorisError("E-crops-miscount", count=len(self.pictures), got=str(len(self.crops)))
        if not self.pictures or min(self.pictures) < 0:
            raise LycorisError("E-picture-numbers-unusable", got=str(self.pictures))
        paces = (self.pace,) if isinstance(self.pace, int) else self.pace
        if min((*self.grid, *paces), default=0) < 1 or min(self.before, self.after) < 0:
            raise LycorisError("E-places-size-unusable", got=str(self))


@dataclass(frozen=True, eq=False)
class Mask:
    """Factors of a strength over a plane, or over frames and a plane.

    `weights` (n, h, w) are shares in [0, 1] at any size: n is 1, or the number of frames of the video or of
    its latent. Frames outside `spans` have weight 0. A weight w stands for the factor
    outside + w (1 - outside). `within` is a mask whose factors are multiplied with these.

    With `text`, layers and tokens at no place, such as those of a text, have the factor 1; else they have 0.
    Raises LycorisError for weights of a wrong shape or outside [0, 1], and for a factor that is not finite.
    """

    weights: Tensor
    spans: tuple[Span, ...] = ()
    outside: float = 0.0
    text: bool = False
    within: Mask | None = None

    def __post_init__(self) -> None:
        values = self.weights
        if values.ndim != 3 or not values.numel():
            raise LycorisError("E-mask-shape-unusable", got=str(list(values.shape)))
        # NaN compares as false.
        if not bool(((values >= 0) & (values <= 1)).all()):
            low, high = (float(value) for value in values.aminmax())
            raise LycorisError("E-mask-values-out-of-range", low=f"{low:g}", high=f"{high:g}")
        if not math.isfinite(self.outside):
            raise LycorisError("E-mask-outside-not-finite", got=str(self.outside))

    def __str__(self) -> str:
        frames, height, width = self.weights.shape
        return f"a mask of {height} x {width}" + (f" for {frames} frames" if frames > 1 else "")

    @property
    def at_no_place(self) -> float:
        """The factor of layers and tokens at no place."""
        return float(self.text and (self.within is None or self.within.text))

    def on(self, grid: Sequence[int], pace: int | Shape = 1, crop: Crop | None = None) -> Tensor:
        """The factors on a grid, (h, w) or (frames, h, w), in float32: means over the area of each place.

        `pace` is as in `Places`. With a crop, `grid` covers only the kept part. Raises LycorisError for any
        other grid, and where the numbers of frames do not agree.
        """
        if len(grid) not in (2, 3):
            raise LycorisError("E-mask-on-layer-without-plane", grid=list(grid))
        *frames, height, width = grid
        count = frames[0] if frames else 1
        if crop is None:
            shares = self._on_whole(count, height, width, pace)
        else:
            *all_frames, high, wide = crop.size
            own = crop.of(self._on_whole(all_frames[0] if all_frames else 1, high, wide, pace))
            shares = functional.adaptive_avg_pool3d(own[None], (count, height, width))[0]
        # Exact at 0 and at 1.
        factors = torch.lerp(torch.full_like(shares, self.outside), torch.ones_like(shares), shares)
        if self.within is not None:
            factors = factors * self.within.on(grid, pace, crop).view_as(factors)
        return factors.view(*grid)

    def _on_whole(self, count: int, height: int, width: int, pace: int | Shape) -> Tensor:
        """The mask's shares (count, height, width) on a grid over the whole picture."""
        wide = self.weights.to("cpu", torch.float32)
        spans = _frames(count, pace)
        planes = self._in_frames(functional.adaptive_avg_pool2d(wide[None], (height, width))[0], spans)
        return planes * self._shares(spans)[:, None, None]

    def _in_frames(self, planes: Tensor, spans: Sequence[int]) -> Tensor:
        """The planes for the frames of a latent. Each of them stands for `spans` frames of a video."""
        planes_given, count, video = len(planes), len(spans), sum(spans)
        if planes_given in (1, count):
            return planes.expand(count, -1, -1)
        if planes_given != video:
            raise LycorisError(
                "E-masks-for-one-picture" if count == 1 else "E-mask-frames-differ",
                got=str(planes_given),
                video=video,
                latent=count,
            )
        return torch.stack([frames.mean(0) for frames in planes.split_with_sizes(list(spans))])

    def _shares(self, spans: Sequence[int]) -> Tensor:
        """The share of each frame of a latent that is in the spans of the mask."""
        if not self.spans:
            return torch.ones(len(spans))
        video = sum(spans)
        inside = torch.zeros(video)
        for first, last in self.spans:
            if first >= video:
                raise LycorisError("E-frames-begin-after-last", last=video - 1, frames=video, got=str(first))
            inside[first : None if last is None else last + 1] = 1.0
        return torch.stack([frames.mean() for frames in inside.split_with_sizes(list(spans))])


def _frames(count: int, pace: int | Shape) -> list[int]:
    """How many frames of a video each of `count` frames of its latent stands for."""
    if isinstance(pace, int):
        return [1, *[pace] * (count - 1)]
    return [pace[number % len(pace)] for number in range(count)]


@dataclass(frozen=True)
class Where:
    """Where, and for which pictures, a strength holds: its factor over places and samples.

    Raises LycorisError for a factor that is not finite.
    """

    mask: Mask | None = None
    factors: tuple[float, ...] | None = None
    """A factor for each picture; None for 1."""
    _kept: dict[tuple[object, ...], Tensor] = field(
        default_factory=dict[tuple[object, ...], Tensor], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.factors or ())):
            raise LycorisError("E-picture-strength-not-finite", got=str(list(self.factors or ())))

    def over(self, places: Places, grid: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The factors (samples, tokens) in a pass; (samples, 1) without a mask, and for `Places.everywhere`.

        `grid` is the grid of the places, or a convolution's own. Raises LycorisError where the mask's frames,
        or the number of pictures, do not agree.
        """
        key = (places, grid, dtype, device)
        if key not in self._kept:
            # A tensor made in inference mode could not be used where gradients are recorded.
            with torch.inference_mode(False), torch.no_grad():
                factors = self._over(places, grid).to(device, dtype)
            while len(self._kept) >= KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = factors
        return self._kept[key]

    def _over(self, places: Places, grid: Shape) -> Tensor:
        if self.mask is None or places.everywhere:
            row = torch.ones(1)
        else:
            rows = {crop: self._row(self.mask, places, grid, crop) for crop in places.crops or (None,)}
            row = torch.stack([rows[crop] for crop in places.crops or (None,)])
        return self._of_pictures(places)[:, None] * row

    @staticmethod
    def _row(mask: Mask, places: Places, grid: Shape, crop: Crop | None) -> Tensor:
        """The factors of the tokens of one sample."""
        inner = mask.on(grid, places.pace, crop).flatten()
        before, after = (torch.full((count,), mask.at_no_place) for count in (places.before, places.after))
        return torch.cat([before, inner, after])

    def _of_pictures(self, places: Places) -> Tensor:
        """The factor of each sample."""
        if self.factors is None:
            return torch.ones(len(places.pictures))
        count = places.of or 1 + max(places.pictures, default=-1)
        if count != len(self.factors):
            raise LycorisError("E-picture-strengths-miscount", pictures=count, strengths=len(self.factors))
        return torch.tensor([self.factors[number] for number in places.pictures])
