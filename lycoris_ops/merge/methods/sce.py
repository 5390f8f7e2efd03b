"""SCE: keep the values where the adapters differ most; weight each adapter by the size of what it keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...changes.forms import Additive, Dense
from ...maths.tensors import energy, wide
from ..deltas import Deltas
from ..elements import SCALE, added, by_tiles, mask_of_largest
from ..method import MergeMethod, Option, Options


def merge(deltas: Deltas, options: Options) -> Sequence[Additive]:
    """D = scale * sum over A of c_i X_i / sum over A of c_i, for each value, with X_i = w_i D_i.

    Select: keep the share `select` of the values where the adapters differ, those with the highest variance;
    all other values become 0. Calculate: c_i is the mean of X_i^2, divided by the sum of these means. Erase:
    A is the set of adapters with the sign of the sum of all X_i. A single change has no variance and is kept
    whole.
    """
    if deltas.count == 1:
        return deltas.combined([options["scale"] * deltas.strengths[0]])
    values = deltas.weighted()
    if options["select"] < 1:
        variance = by_tiles(values, _variance, deltas.pause)
        chosen = mask_of_largest(
            variance, (options["select"] * wide((variance > 0).sum())).long(), deltas.pause
        )
        values = [one * chosen for one in values]
    energies: list[Tensor] = []
    for one in values:
        deltas.pause()
        energies.append(energy(one))
    # Where all are 0, so are the values.
    total = added(energies)
    weights = [(one / torch.where(total > 0, total, 1.0)).float() for one in energies]

    def merged(tile: list[Tensor]) -> Tensor:
        signs = added(tile).sign()
        signs[signs == 0] = 1.0
        shares = [weight * (one.sign() == signs) for one, weight in zip(tile, weights, strict=True)]
        total = added(shares)
        found = added([one * share for one, share in zip(tile, shares, strict=True)])
        return options["scale"] * found / torch.where(total < 1e-6, 1.0, total)

    return [Dense(by_tiles(values, merged, deltas.pause))]


def _variance(values: list[Tensor]) -> Tensor:
    mean = added(values) / len(values)
    return added([(one - mean).square() for one in values]) / len(values)


METHOD = MergeMethod(
    name="sce",
    merge=merge,
    source="Wan et al., FuseChat (2408.07990), section 3.3",
    factors=False,
    options=(
        Option(
            "select",
            1.0,
            "Keeps this share of the places: those where the adapters differ most.",
            0,
            1,
        ),
        SCALE,
    ),
    alone=lambda strength, options: options["scale"] * strength,
)
