"""Raise an error where a change overflows the dtype it is computed in, or the weight's own.

Checking every patched weight would add a tenth to the time of patching. So a bound of the change is computed
from the factors once, when a plan is made. Where this bound does not rule out an overflow, a copy of the
weight is patched and its values are checked.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algorithms.base import overflow
from ..changes.forms import Additive, reaches
from ..errors import LayerError
from ..layers.part import Part
from ..maths.tensors import compute_dtype, is_finite, largest

SHARE = 0.25
"""Values are checked only where the bound of all changes is above this share of the dtype's largest number.
The rest is left for the weight itself: weights of models are below 1000, and the largest float16 is 65504."""


@dataclass(frozen=True)
class Bound:
    """Bounds on the change of one layer at strength 1. `file` and `key` say where the layer is from."""

    slot: int
    """The layer's index in the plan's strengths."""
    most: float
    """No value of the change is larger."""
    within: float
    """No intermediate result of the change is larger."""
    file: str | None = None
    key: str | None = None

    @classmethod
    def all_of(cls, forms: Sequence[tuple[Additive, int, Part]]) -> tuple[Bound, ...]:
        """The bounds of (form, slot, part) triples, with one synchronisation of the device."""
        found = zip(reaches([form for form, _, _ in forms]), forms, strict=True)
        return tuple(
            cls(slot, reach.most, reach.within, part.file, part.key) for reach, (_, slot, part) in found
        )


def overflow_of(weight: Tensor, bounds: Sequence[Bound], strengths: Sequence[float]) -> LayerError | None:
    """The error to raise where changes make a finite weight NaN or infinite; None where they cannot.

    It names the file and key of a layer. Raises LayerError for a strength beyond the range of the sum's
    dtype.
    """
    wide = torch.finfo(compute_dtype(weight.dtype)).max
    for strength in strengths:
        if not abs(strength) <= wide:
            raise LayerError(
                "the strength of a layer is not a usable number",
                got=f"{strength:g}",
                expected="a finite number",
            )
    narrow = torch.finfo(weight.dtype).max
    # Shares of the largest numbers of the weight's dtype and of the sum's.
    shares = [
        (
            abs(strengths[bound.slot]) * bound.most / narrow,
            max(1.0, abs(strengths[bound.slot])) * bound.within / wide,
        )
        for bound in bounds
    ]
    # Written so that NaN does not count as small.
    if sum(most for most, _ in shares) <= SHARE and sum(within for _, within in shares) <= SHARE:
        return None
    worst = bounds[max(range(len(bounds)), key=lambda n: max(_size(share) for share in shares[n]))]
    return overflow(weight.dtype).within(file=worst.file, key=worst.key)


def _size(share: float) -> float:
    # NaN is infinity times zero.
    return math.inf if math.isnan(share) else share


_left_out: ContextVar[list[Tensor] | None] = ContextVar("left_out", default=None)


@contextmanager
def leaving_out() -> Generator[list[Tensor]]:
    """Within it, `doubtful` waits for no device: it leaves doubtful sums out, and adds to the list for each
    sum whether it was left out."""
    flags: list[Tensor] = []
    token = _left_out.set(flags)
    try:
        yield flags
    finally:
        _left_out.reset(token)


def doubtful(total: Tensor, sizes: Sequence[Tensor], weight: Tensor) -> bool:
    """Whether `check_sum` must check a sum that had these largest values on the way, with one wait."""
    # NaN does not count as small.
    flag = ~(torch.stack(list(sizes)) <= SHARE * torch.finfo(weight.dtype).max).all()
    flags = _left_out.get()
    if flags is None:
        return bool(flag)
    flags.append(flag)
    total.masked_fill_(flag, 0.0)
    return False


def check_sum(total: Tensor, weight: Tensor) -> None:
    """Raise LayerError where the sum of changes of a weight, or the weight with it, overflows.

    `total` (O, K) is the sum in float32 or float64. A weight that is not finite itself is not checked.
    """
    found = largest(total)
    if found <= SHARE * torch.finfo(weight.dtype).max:
        return
    if is_finite(weight):
        if not math.isfinite(found):
            raise overflow(total.dtype)
        if not is_finite((weight.to(total.dtype).reshape(total.shape) + total).to(weight.dtype)):
            raise overflow(weight.dtype)
