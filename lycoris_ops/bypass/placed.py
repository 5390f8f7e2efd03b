"""The factors of strengths that differ over places and samples."""

from __future__ import annotations

import math

from torch import Tensor

from ..changes.place import Places, Where
from ..errors import LycorisError
from ..maths.tensors import compute_dtype


def factors_of(where: Where, places: Places | None, kernel: int, y: Tensor) -> Tensor:
    """The factors of a `Where`, in float32 or float64, shaped to be multiplied with an input or output y.

    `kernel` is the number of dimensions of a convolution's kernel, 0 for a linear layer. Raises LycorisError
    where no places are set, or y has another number of tokens than they have.
    """
    if places is None:
        raise LycorisError(
            "the strength of a layer differs over places, but no places are set",
            expected="`Bypass.places` to be set before a pass",
        )
    samples = len(places.pictures)
    grid = tuple(y.shape[-kernel:]) if kernel else places.grid
    found = where.over(places, grid, compute_dtype(y.dtype), y.device)
    if kernel:
        batch = y.shape[: -kernel - 1]
        if math.prod(batch) != samples:
            raise _other_count(f"{math.prod(batch)} samples", f"{samples}")
        return found.view(*batch, 1, *(grid if found.shape[1] > 1 else (1,) * kernel))
    rows = y.numel() // max(y.shape[-1], 1)
    tokens = found.shape[1]
    if (where.mask is None or places.everywhere) and rows % samples == 0:
        found = found.expand(-1, rows // samples)
    elif rows != samples * tokens:
        raise _other_count(f"{rows} tokens", f"{tokens} for each of {samples} samples: {places}")
    return found.reshape(*y.shape[:-1], 1)


def _other_count(got: str, expected: str) -> LycorisError:
    return LycorisError(
        "a layer with a mask got a different number of tokens than its places have",
        got=got,
        expected=expected,
        hint="Take the mask away, or the layer out of the stack by a rule of weight 0",
    )
