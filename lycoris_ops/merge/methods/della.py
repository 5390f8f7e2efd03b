"""DELLA: drop values at random, small ones more often, and scale up the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...changes.forms import Additive, Dense
from ...errors import LycorisError
from ...maths.decompositions import Pause
from ..deltas import Deltas
from ..elements import CONSENSUS, DENSITY, SCALE, by_tiles, reduced
from ..method import MergeMethod, Option, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = scale * sum of w_i m_i * D_i / p_i, with m_i of independent zeros and ones.

    A value of m_i is 1 with the probability p_i, which rises linearly with the rank of the value's size in
    its row: from density - epsilon for the smallest to density + epsilon for the largest. Other values of
    `consensus` replace the sum, see `agreed`. Raises LycorisError unless 0 < p_i <= 1.
    """
    density, epsilon = options["density"], options["epsilon"]
    if not 0 < density - epsilon <= density + epsilon <= 1:
        raise LycorisError(
            "E-della-probabilities-out-of-range",
            least=f"{density - epsilon:g}",
            most=f"{density + epsilon:g}",
        )
    kept = [
        _dropped(deltas.dense(index), density, epsilon, deltas.generator(index), deltas.pause)
        for index in range(deltas.count)
    ]
    return [Dense(reduced(kept, deltas, options))]


def _dropped(
    values: Tensor, density: float, epsilon: float, generator: torch.Generator, pause: Pause
) -> Tensor:
    columns = values.shape[1]
    chances = density - epsilon + 2 * epsilon * torch.arange(columns) / max(columns - 1, 1)
    chances = chances.to(values.device)

    def of(tile: list[Tensor]) -> Tensor:
        (rows,) = tile
        chance = torch.empty_like(rows).scatter_(1, rows.abs().argsort(dim=1), chances.expand_as(rows))
        drawn = torch.rand(rows.shape, generator=generator).to(values.device) < chance
        return rows * drawn / chance

    return by_tiles([values], of, pause)


METHOD = MergeMethod(
    name="della",
    merge=merge,
    source="Deep, Bhardwaj and Poria, DELLA-Merging (2406.11617), section 3",
    factors=False,
    options=(
        DENSITY,
        Option(
            "epsilon",
            0.15,
            "How far the chance to be kept is above the density for the largest values, and below it for the "
            "smallest. 0 is DARE.",
            0,
            0.5,
        ),
        CONSENSUS,
        SCALE,
    ),
)
