"""Shapes of weights and of changes, and how sizes are split."""

from __future__ import annotations

import math
from collections.abc import Sequence

Shape = tuple[int, ...]

Extent = tuple[int | None, ...]
"""The shape that a layer is made for; None where it fits any size."""

Rows = tuple[int, int]
"""The first row of some and the end."""


def flat_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A weight's shape as the matrix (O, K) that the patch ops work on."""
    return shape[0], math.prod(shape[1:])


def factorization(dimension: int, factor: int = -1, *, ordered: bool = True) -> tuple[int, int]:
    """Split `dimension` into (m, n) with m * n == dimension.

    With `factor` > 0 dividing the dimension, that split: (factor, n), or where `ordered` the smaller part
    first. Otherwise the most balanced split with m <= n whose smaller part is at most `factor` (no bound
    for -1). 128, -1 gives (8, 16); 128, 4 gives (4, 32); 127 gives (1, 127); 128, 32 gives (4, 32), or
    (32, 4) where not `ordered`.

    Source: the LoKr layout of LyCORIS; not `ordered`, that of PEFT (`factorization` in
    tuners/lokr/layer.py of peft 0.21, Apache-2.0).
    """
    if dimension < 1 or factor == 0 or factor < -1:
        raise ValueError(f"cannot factor {dimension} by {factor}: both must be positive (or factor -1)")
    if factor > 0 and dimension % factor == 0:
        split = factor, dimension // factor
        return (min(split), max(split)) if ordered else split
    bound = math.isqrt(dimension) if factor < 0 else min(factor, math.isqrt(dimension))
    small = next(m for m in range(bound, 0, -1) if dimension % m == 0)
    return small, dimension // small


def fits(stored: Extent, weight: Sequence[int]) -> bool:
    """Whether a change of extent `stored` can be added to a weight of shape `weight`.

    The matrices (O, K) must agree, and so must the kernels where both sides have one: a 1x1
    convolution and a linear layer hold the same matrix, a 3x3 kernel and a 9-tap one do not.
    A size of None fits any. Two sizes, (O, None) or (None, K), are compared with the matrix (O, K); three
    or more, such as (None, I, None), with O and I, and any kernel fits. The extent () stands for no change
    of the weight, which fits every weight.
    """
    if not stored:
        return True
    sizes = [size for size in stored if size is not None]
    if len(sizes) < len(stored):
        met = flat_shape(weight) if len(stored) == 2 else weight[:2]
        return len(met) == 2 and all(size in (None, found) for size, found in zip(stored, met, strict=False))
    if not weight or flat_shape(sizes) != flat_shape(weight):
        return False
    if len(stored) <= 2 or len(weight) <= 2:
        return len(weight) == 1 or len(stored) > 1 or math.prod(weight[1:]) == 1
    return _kernel(stored) == _kernel(weight)


def _kernel(shape: Sequence[int | None]) -> Shape:
    """The kernel without trailing ones: PEFT writes that of a one-dimensional Tucker core as (k, 1)."""
    kernel = [size for size in shape[2:] if size is not None]
    while kernel and kernel[-1] == 1:
        kernel.pop()
    return tuple(kernel)


def shown(extent: Extent) -> str:
    """A shape in words for messages; a size that the layer leaves open is a star."""
    return "[" + ", ".join("*" if size is None else str(size) for size in extent) + "]"


def stacked(shapes: Sequence[Shape]) -> Shape:
    """The shape of weights one below the other; () where one of them is not known."""
    if len(shapes) == 1 or not all(shapes):
        return shapes[0] if len(shapes) == 1 else ()
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])
