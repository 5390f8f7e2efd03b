"""Shapes of weights and of changes, and how sizes are split."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..messages import phrase

Shape = tuple[int, ...]
"""The size of a tensor along each axis."""

Extent = tuple[int | None, ...]
"""The shape of the weights that a layer is made for; a size of None fits any size."""

Rows = tuple[int, int]
"""A range of rows: the first one, and the one after the last."""


def flat_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A weight's shape as the matrix (O, K) that the patch ops work on."""
    return shape[0], math.prod(shape[1:])


def factorization(dimension: int, factor: int = -1, *, ordered: bool = True) -> tuple[int, int]:
    """Split `dimension` into (m, n) with m * n == dimension.

    Where a positive `factor` divides the dimension, the split is (factor, dimension / factor), with the
    smaller part first if `ordered`. Any other split is the most balanced one with m <= n and m at most
    `factor` (no bound for -1). 128, -1 gives (8, 16); 128, 4 gives (4, 32); 127 gives (1, 127); 128, 32 gives
    (4, 32), or (32, 4) if not `ordered`.

    Raises ValueError unless `dimension` is positive and `factor` positive or -1.

    Source: the LoKr layout of LyCORIS; if not `ordered`, PEFT's (`factorization` in tuners/lokr/layer.py of
    peft 0.21, Apache-2.0).
    """
    if dimension < 1 or factor == 0 or factor < -1:
        raise ValueError(phrase("R-cannot-factor-both-must-be", dimension=dimension, factor=factor))
    if factor > 0 and dimension % factor == 0:
        split = factor, dimension // factor
        return (min(split), max(split)) if ordered else split
    bound = math.isqrt(dimension) if factor < 0 else min(factor, math.isqrt(dimension))
    small = next(m for m in range(bound, 0, -1) if dimension % m == 0)
    return small, dimension // small


def fits(stored: Extent, weight: Sequence[int]) -> bool:
    """Whether a change of extent `stored` can be added to a weight of shape `weight`.

    The matrices (O, K) must be of the same size. Where both shapes have a kernel, the kernels must agree too:
    a 1x1 convolution and a linear layer hold the same matrix, but a 3x3 kernel and a 9-tap kernel do not.

    None fits any size. An extent with None and two sizes, (O, None) or (None, K), is compared with the matrix
    (O, K). With three or more sizes, such as (None, I, None), only O and I are compared, and any kernel fits.
    (None,) fits every bias.

    A layer that does not change the weight has the extent (), which fits every weight.
    """
    if not stored:
        return True
    if not weight:
        return False
    sizes = [size for size in stored if size is not None]
    if len(sizes) < len(stored):
        met = flat_shape(weight) if len(stored) == 2 else weight[:2]
        same = all(size in (None, wanted) for size, wanted in zip(stored, met, strict=False))
        return same and len(met) == min(len(stored), 2)
    if flat_shape(sizes) != flat_shape(weight):
        return False
    return len(stored) <= 2 or len(weight) <= 2 or _kernel(stored) == _kernel(weight)


def _kernel(shape: Sequence[int | None]) -> Shape:
    """The kernel sizes of a shape, without trailing 1s.

    PEFT writes the kernel of a Tucker core for a 1-D convolution as (k, 1).
    """
    kernel = [size for size in shape[2:] if size is not None]
    while kernel and kernel[-1] == 1:
        kernel.pop()
    return tuple(kernel)


def shown(extent: Extent) -> str:
    """A shape as text for messages: `[320, *]`. A star marks a size of None."""
    return "[" + ", ".join("*" if size is None else str(size) for size in extent) + "]"


def stacked(shapes: Sequence[Shape]) -> Shape:
    """The shape of weights that are stacked along their outputs; () if one of the shapes is ().

    () stands for a shape that is not known.
    """
    if len(shapes) == 1 or not all(shapes):
        return shapes[0] if len(shapes) == 1 else ()
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])
