"""Whether a change may overflow the dtype it is computed in, or the weight's own.

Checking every patched weight would add a tenth to the time of patching. So a bound of each change that does
not depend on the weight is computed from its factors once, when a plan is made. Only where these bounds do
not rule out an overflow are the values of the patched weight checked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..changes.forms import Additive, reaches
from ..errors import LayerError
from ..layers.part import Part
from ..maths.tensors import compute_dtype

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
        reached = zip(reaches([form for form, _, _ in forms]), forms, strict=True)
        return tuple(
            cls(slot, reach.most, reach.within, part.file, part.key) for reach, (_, slot, part) in reached
        )

    def shares(self, dtype: torch.dtype, strengths: Sequence[float]) -> tuple[float, float]:
        """`most` as a share of the largest number of a weight's dtype, `within` as one of the sum's."""
        strength = abs(strengths[self.slot])
        shares = (
            strength * self.most / torch.finfo(dtype).max,
            max(1.0, strength) * self.within / torch.finfo(compute_dtype(dtype)).max,
        )
        # NaN is infinity times zero.
        most, within = (math.inf if math.isnan(share) else share for share in shares)
        return most, within


def may_overflow(dtype: torch.dtype, bounds: Sequence[Bound], strengths: Sequence[float]) -> bool:
    """Whether changes of these bounds may make a finite weight of `dtype` NaN or infinite."""
    shares = [bound.shares(dtype, strengths) for bound in bounds]
    return sum(most for most, _ in shares) > SHARE or sum(within for _, within in shares) > SHARE


def check_strengths(dtype: torch.dtype, strengths: Sequence[float]) -> None:
    """Raise LayerError for a strength beyond the range of the dtype in which a weight's changes are added."""
    for strength in strengths:
        if not abs(strength) <= torch.finfo(compute_dtype(dtype)).max:
            raise LayerError("E-strength-not-usable", got=f"{strength:g}")
