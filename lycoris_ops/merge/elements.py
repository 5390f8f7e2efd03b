"""Helpers of the methods that work value by value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..maths.decompositions import Pause
from ..maths.scratch import tile
from .method import Option

DENSITY = Option("density", 0.5, "The share of the values of each adapter that is kept. 1 keeps all.", 0, 1)
SCALE = Option("scale", 1.0, "Multiplies the whole result. 1 changes nothing.", -100, 100)
CONSENSUS = Option(
    "consensus",
    "sum",
    "sum: adds up the values that are kept. ties: averages those that have the sign of the sum.",
    choices=("sum", "ties"),
)

TILE = 1 << 20
"""How many values are processed between two pauses."""
LOW_BITS = 15
"""How many of the 31 bits of a float32's absolute value count as the lower bits, see `kept_places`."""


def tiles(values: Tensor, pause: Pause) -> Iterator[slice]:
    """Ranges of the rows of a matrix (O, K), of about TILE values each."""
    rows = max(1, tile(values.device, TILE) // max(1, values.shape[1]))
    for start in range(0, values.shape[0], rows):
        pause()
        yield slice(start, start + rows)


def by_tiles(
    values: Sequence[Tensor], of: Callable[[list[Tensor]], Tensor], pause: Pause, out: Tensor | None = None
) -> Tensor:
    """Apply `of` to matrices of one shape, tile by tile, and write the result to `out` if given."""
    made = torch.empty_like(values[0]) if out is None else out
    for rows in tiles(values[0], pause):
        made[rows] = of([one[rows] for one in values])
    return made


def largest_kept(values: Tensor, density: float, pause: Pause) -> Tensor:
    """Keep the floor(density * n) values of largest size; the others become 0."""
    return middle_kept(values, 0, int(density * values.numel()), pause)


def middle_kept(values: Tensor, first: int, count: int, pause: Pause) -> Tensor:
    """Keep the values of ranks `first` to `first + count` by size, rank 0 being the largest; the others
    become 0.

    Among equal sizes the earlier places come first.
    """
    if first == 0 and count >= values.numel():
        return values
    chosen = kept_places(values, first + count, pause)
    if first:
        chosen &= ~kept_places(values, first, pause)
    return by_tiles([values, chosen], lambda both: both[0] * both[1], pause, torch.empty_like(values))


def kept_places(values: Tensor, count: int, pause: Pause) -> Tensor:
    """A mask of the `count` values that are largest in size; among equal sizes, of the earlier ones.

    Floats of one sign sort like their bits. A histogram of the upper bits and one of the lower bits find the
    smallest size that is kept, without sorting all values.
    """
    kept = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    if count <= 0:
        return kept

    def sizes(rows: slice) -> Tensor:
        return values[rows].float().abs().view(torch.int32)

    upper, above = _reached(
        ((sizes(rows) >> LOW_BITS) for rows in tiles(values, pause)), 31 - LOW_BITS, count
    )
    lower, over = _reached(
        (size[size >> LOW_BITS == upper] & (1 << LOW_BITS) - 1 for size in map(sizes, tiles(values, pause))),
        LOW_BITS,
        count - above,
    )
    last = (upper << LOW_BITS) | lower
    equal = count - above - over
    for rows in tiles(values, pause):
        size = sizes(rows)
        kept[rows] = size > last
        if equal > 0:
            places = (size.flatten() == last).nonzero().flatten()[:equal]
            kept[rows].view(-1)[places] = True
            equal -= len(places)
    return kept


def _reached(numbers: Iterator[Tensor], bits: int, count: int) -> tuple[int, int]:
    """The largest number that at least `count` numbers reach, and how many numbers are above it."""
    bins = sum(torch.bincount(each.flatten(), minlength=1 << bits).cpu() for each in numbers)
    assert isinstance(bins, Tensor)
    falling = bins.flip(0).cumsum(0)
    place = int(torch.searchsorted(falling, count))
    return len(bins) - 1 - place, int(falling[place] - bins.flip(0)[place])


def elected(values: Sequence[Tensor]) -> Tensor:
    """For each place, the mean of the values whose sign is that of the sum.

    Zeros have no sign. Where the values cancel, the sign is positive.

    Source: Yadav et al., TIES-Merging (2306.01708), algorithm 1.
    """
    total, count = agreeing(values, [1.0] * len(values))
    return total / count.clamp(min=1)


def agreeing(values: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """For each place, the sum of the values that have the sign of the total, and the sum of their weights."""
    signs = added(values).sign()
    signs[signs == 0] = 1.0
    total = torch.zeros_like(values[0])
    weight = torch.zeros_like(values[0])
    for one, its in zip(values, weights, strict=True):
        agrees = one.sign() == signs
        total += one * agrees
        weight += its * agrees
    return total, weight


def added(values: Sequence[Tensor]) -> Tensor:
    total = values[0].clone()
    for one in values[1:]:
        total += one
    return total


def reduced(values: Sequence[Tensor], consensus: str, scale: float, pause: Pause) -> Tensor:
    """The sum of the values, or with consensus "ties" their `elected` mean, times a scale."""
    of = elected if consensus == "ties" else added
    return by_tiles(values, lambda tile: scale * of(tile), pause)
