"""Helpers of the methods that work value by value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..maths.decompositions import Pause
from ..maths.scratch import tile
from .deltas import Deltas
from .method import Option, Options

DENSITY = Option("density", 0.5, "The share of each adapter's values to keep. 1 keeps all.", 0, 1)
SCALE = Option("scale", 1.0, "Multiplies the whole result. 1 changes nothing.", -100, 100)
CONSENSUS = Option(
    "consensus",
    "sum",
    "sum: adds up the values that are kept. ties: averages those that have the sign of the sum. "
    "ties_normalize: divides them by the sum of their strengths instead of their number, as mergekit with "
    "normalize. ties_sum: adds them up, as mergekit without it. ties_total, ties_frequency: as ties, but "
    "values vote without their strengths, by their sum or by their number, as in PEFT.",
    choices=("sum", "ties", "ties_normalize", "ties_sum", "ties_total", "ties_frequency"),
)

TILE = 1 << 17
"""How many values are processed between two pauses: as many as stay in a CPU's cache."""
LOW_BITS = 15
"""How many of the 31 bits of a float32's absolute value count as the lower bits, see `mask_of_largest`."""
LEAST = 1e-8
"""Smaller sums of strengths count as 1."""


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
    result = torch.empty_like(values[0]) if out is None else out
    for rows in tiles(values[0], pause):
        result[rows] = of([matrix[rows] for matrix in values])
    return result


def largest_kept(values: Tensor, density: float, pause: Pause) -> Tensor:
    """Keep the floor(density * n) values of largest size; the others become 0."""
    return middle_kept(values, 0, int(density * values.numel()), pause)


def middle_kept(values: Tensor, first: int, count: int, pause: Pause) -> Tensor:
    """Keep the values of ranks `first` to `first + count` by size, rank 0 being the largest; the others
    become 0.

    Among equal sizes the earlier values come first.
    """
    if first == 0 and count >= values.numel():
        return values
    chosen = mask_of_largest(values, first + count, pause)
    if first:
        chosen &= ~mask_of_largest(values, first, pause)
    return by_tiles([values, chosen], lambda both: both[0] * both[1], pause, torch.empty_like(values))


def mask_of_largest(values: Tensor, count: int | Tensor, pause: Pause) -> Tensor:
    """A mask of the `count` values that are largest in size; among equal sizes, of the earlier ones.

    Floats of one sign sort like their bits. A histogram of the upper bits and one of the lower bits find the
    smallest size that is kept, without sorting all values and without waiting for the device.
    """
    kept = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    if isinstance(count, int) and count <= 0:
        return kept

    def sizes() -> Iterator[tuple[slice, Tensor]]:
        for rows in tiles(values, pause):
            yield rows, values[rows].float().abs().view(torch.int32)

    every = kept.new_ones(())
    upper, left = _reached(((size >> LOW_BITS, every) for _, size in sizes()), 31 - LOW_BITS, count)
    lower, left = _reached(
        ((size & (1 << LOW_BITS) - 1, size >> LOW_BITS == upper) for _, size in sizes()), LOW_BITS, left
    )
    last = (upper << LOW_BITS) | lower
    for rows, size in sizes():
        equal = size == last
        first = equal.flatten().cumsum(0, dtype=torch.int32).view(equal.shape) <= left
        kept[rows] = (size > last) | (equal & first)
        left = left - equal.count_nonzero()
    return kept


def _reached(
    numbers: Iterable[tuple[Tensor, Tensor]], bits: int, count: int | Tensor
) -> tuple[Tensor, Tensor]:
    """The largest number that at least `count` numbers reach, and `count` less how many lie above it.

    Each tensor of numbers comes with flags, or with one flag, that say which of them count. The results stay
    on the device.
    """
    bins: Tensor | None = None
    for each, there in numbers:
        if bins is None:
            bins = torch.zeros(1 << bits, dtype=torch.int32, device=each.device)
        bins.scatter_add_(0, each.flatten().long(), there.int().flatten().expand(each.numel()))
    assert bins is not None
    reach = bins.flip(0).cumsum(0, dtype=torch.int32).flip(0)
    return (reach >= count).count_nonzero() - 1, count - (reach * (reach < count)).max()


def reduced(values: Sequence[Tensor], deltas: Deltas, options: Options) -> Tensor:
    """`scale` times what `agreed` makes of the values H_i at each position and of the strengths w_i."""

    def of(tile: list[Tensor]) -> Tensor:
        return options["scale"] * agreed(tile, deltas.strengths, options["consensus"])

    return by_tiles(values, of, deltas.pause)


def agreed(values: Sequence[Tensor], strengths: Sequence[float], consensus: str) -> Tensor:
    """For each position, one value of several H_i with strengths w_i.

    "sum" is the sum of w_i H_i. All others add up only the w_i H_i whose vote v_i has the sign of the sum of
    the votes, and divide that by d:

    | consensus | v_i | d |
    |---|---|---|
    | ties | w_i H_i | number of those that agree |
    | ties_normalize | w_i H_i | sum of their w_i; below 1e-8 it is 1 |
    | ties_sum | w_i H_i | 1 |
    | ties_total | H_i | number |
    | ties_frequency | sign of H_i | number |

    A vote of 0 never agrees. Where the votes cancel, the sign is positive.

    Source: Yadav et al., TIES-Merging (2306.01708), algorithm 1; ties_normalize and ties_sum as in mergekit
    (merge_methods/generalized_task_arithmetic.py), ties_total and ties_frequency as the majority_sign_method
    of PEFT (utils/merge_utils.py).
    """
    weighted = [strength * value for strength, value in zip(strengths, values, strict=True)]
    if consensus == "sum":
        return added(weighted)
    votes = weighted
    if consensus == "ties_total":
        votes = values
    elif consensus == "ties_frequency":
        votes = [value.sign() for value in values]
    sign = torch.where(added(votes) < 0, -1.0, 1.0)
    agree = [vote.sign() == sign for vote in votes]
    total = added([value * its for value, its in zip(weighted, agree, strict=True)])
    if consensus == "ties_sum":
        return total
    if consensus == "ties_normalize":
        weight = added([strength * its for strength, its in zip(strengths, agree, strict=True)])
        return total / torch.where(weight.abs() < LEAST, 1.0, weight)
    return total / added([its.to(total.dtype) for its in agree]).clamp(min=1)


def added(values: Sequence[Tensor]) -> Tensor:
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total
