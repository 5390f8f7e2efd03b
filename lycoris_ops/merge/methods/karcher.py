"""The mean direction of any number of changes on the sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...changes.forms import Additive
from ..deltas import Deltas
from ..method import MergeMethod, Options

STEPS = 100
SETTLED = 1e-10
"""The mean is found once a step turns by less than this angle."""
CANCELLED = 1e-5
"""Below this length the sum of the directions is only the rounding of float32."""
OPPOSITE = 1e-6
"""Within this angle of the opposite direction no way round is the shorter one."""


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = m (sum of a_i ||D_i||) u, with a_i = |w_i| / sum of |w_j| and m the mean of |w_i|.

    A change of 0 counts in m alone.

    u is the direction that minimises the sum of a_i angle(u, d_i)^2, where d_i is D_i / ||D_i|| with the sign
    of its strength. It is found by u <- exp_u(sum of a_i log_u(d_i)), starting at the direction of sum of a_i
    d_i. As u stays a linear combination of the D_i, only their inner products are needed. A d_i opposite to u
    does not turn it.
    """
    weights = torch.tensor(deltas.strengths, dtype=torch.float64)
    gram = deltas.gram()
    norms = gram.diagonal().clamp(min=0).sqrt()
    live = (norms > 0) & (weights != 0)
    if not bool(live.any()):
        return []
    shares = weights.abs() * live / weights.abs().mul(live).sum()
    # Row i: the coefficients of d_i in terms of the D_j.
    directions = torch.diag(torch.where(live, weights.sign() / norms.clamp(min=1e-300), 0.0))

    def inner(one: Tensor, other: Tensor) -> Tensor:
        return (one @ gram @ other.mT) if other.ndim > 1 else one @ gram @ other

    u = shares @ directions
    size = inner(u, u).clamp(min=0).sqrt()
    if float(size) < CANCELLED:
        # No direction is nearer to all than another.
        return []
    u = u / size
    for _ in range(STEPS):
        cosines = inner(u, directions).clamp(-1, 1)
        angles = cosines.acos()
        factors = torch.where(angles > 1e-12, angles / angles.sin().clamp(min=1e-300), 1.0)
        factors[math.pi - angles < OPPOSITE] = 0.0
        step = (shares * factors) @ directions - (shares * factors * cosines).sum() * u
        length = inner(step, step).clamp(min=0).sqrt()
        if float(length) < SETTLED:
            break
        u = u * length.cos() + step / length * length.sin()
    mean = float(weights.abs().mean())
    length = float((shares * norms).sum())
    return deltas.summed([mean * length * float(coefficient) for coefficient in u])


METHOD = MergeMethod(
    name="karcher",
    merge=merge,
    source="Karcher, Riemannian Center of Mass and Mollifier Smoothing (1977), on flattened changes",
    factors=True,
    alone=lambda strength, _: strength,
)
