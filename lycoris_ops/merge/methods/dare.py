"""DARE: drop values at random, and scale up the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...changes.forms import Additive, Dense
from ...maths.decompositions import Pause
from ..deltas import Deltas
from ..elements import CONSENSUS, DENSITY, SCALE, by_tiles, reduced
from ..method import MergeMethod, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = scale * sum of w_i m_i * D_i / density, with m_i of independent zeros and ones.

    A value of m_i is 1 with the probability `density`. Other values of `consensus` replace the sum,
    see `agreed`.
    """
    kept = [
        _dropped(deltas.dense(index), options["density"], deltas.generator(index), deltas.pause)
        for index in range(deltas.count)
    ]
    return [Dense(reduced(kept, deltas, options))]


def _dropped(values: Tensor, density: float, generator: torch.Generator, pause: Pause) -> Tensor:
    if density == 0:
        return torch.zeros_like(values)

    def of(tile: list[Tensor]) -> Tensor:
        drawn = torch.rand(tile[0].shape, generator=generator) < density
        return tile[0] * drawn.to(values.device) / density

    return by_tiles([values], of, pause)


METHOD = MergeMethod(
    name="dare",
    merge=merge,
    source="Yu et al., Language Models are Super Mario (2311.03099), eq. 1",
    factors=False,
    options=(DENSITY, CONSENSUS, SCALE),
)
