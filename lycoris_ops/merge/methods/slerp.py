"""Spherical interpolation of two changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...changes.forms import Additive
from ..deltas import Deltas
from ..method import MergeMethod, Options

STRAIGHT = 0.9995
"""Above this absolute cosine the interpolation is linear."""


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = m (sin((1 - t) theta) a + sin(t theta) b) / sin theta, with t = |w_b| / (|w_a| + |w_b|).

    a and b are D_a and D_b with the signs of their strengths, theta is the angle between them, and m is the
    mean of |w_a| and |w_b|. Two parallel changes give their average. One change alone is w D.
    """
    if deltas.count == 1:
        return deltas.combined(deltas.strengths)
    sizes = [abs(strength) for strength in deltas.strengths]
    mean = sum(sizes) / 2
    if mean == 0:
        return []
    share = sizes[1] / sum(sizes)
    gram = deltas.gram()
    norms = [math.sqrt(max(float(gram[i, i]), 0.0)) for i in (0, 1)]
    signs = [math.copysign(1.0, strength) for strength in deltas.strengths]
    scale = norms[0] * norms[1]
    cosine = signs[0] * signs[1] * float(gram[0, 1]) / scale if scale else 1.0
    first, second = 1 - share, share
    if abs(cosine) <= STRAIGHT:
        angle = math.acos(cosine)
        first, second = math.sin(first * angle) / math.sin(angle), math.sin(second * angle) / math.sin(angle)
    return deltas.summed([mean * signs[0] * first, mean * signs[1] * second])


METHOD = MergeMethod(
    name="slerp",
    merge=merge,
    source="Shoemake, Animating Rotation with Quaternion Curves (1985), section 3.3, on flattened changes",
    factors=True,
    adapters=(2, 2),
    alone=lambda strength, _: strength,
)
