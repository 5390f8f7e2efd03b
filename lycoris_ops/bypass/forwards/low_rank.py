"""All LoRA layers of a module in one pair of products: up @ diag(factors) @ down @ x."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import mul

import torch
from torch import Tensor
from torch.nn import functional

from ...changes.forms import LowRank
from ...maths.tensors import compute_dtype
from ..geometry import Geometry
from .forward import Item, Prepared, Strengths, joined, outliving, plus_product

FORMS = (LowRank,)
Factors = Callable[[int], Tensor | None]
"""What multiplies the change of a slot; None for 1."""
Runs = Sequence[tuple[Sequence[int], Tensor | None]]
"""The numbers of neighbouring layers with one factor, and that factor."""


class LowRankForward:
    """y += up @ diag(scale * strength) @ (down x), with the factors of all layers joined into one pair."""

    def __init__(
        self, geometry: Geometry, items: Sequence[Item], dtype: torch.dtype, device: torch.device
    ) -> None:
        forms: list[LowRank] = [item.form for item in items]
        self.geometry = geometry
        self.pair = Prepared(items, partial(_pair, geometry, dtype, device))
        self.reads = self.pair.reads
        self._product = geometry.product if geometry.kernel else functional.linear
        self._scales = [form.scale for form in forms]
        self._slots = [item.slot for item in items]
        self._ranks = [len(form.down) for form in forms]
        self._held: tuple[tuple[float, ...], Tensor] | None = None

    def add(self, y: Tensor, x: Tensor, strengths: Strengths, factors: Factors | None = None) -> Tensor:
        """As `Forward.add`. `factors`, in float32 or float64, multiply the changes over the places of y:
        (tokens, 1), or (samples, 1, *places) for a convolution. They are applied to down x, which is smaller.
        With groups all slots have one factor.
        """
        down, up = self.pair()
        hidden = self._product(x, down)
        # `map` runs no Python code for each slot, as a comprehension would.
        scales = list(map(mul, self._scales, map(strengths.__getitem__, self._slots)))
        if factors is not None:
            return self._placed(y, hidden, up, scales, self._runs(factors))
        # A scale that all layers share is the product's `alpha`, where it costs nothing. No set of them is
        # made: a graph of torch.compile would then depend on their values.
        alpha = scales[0]
        if scales.count(alpha) != len(scales):
            hidden, alpha = self._scaled(hidden, scales, up), 1.0
        if self.geometry.kernel:
            return self._raised(y, hidden, up, alpha)
        return plus_product(y, hidden, up.T, alpha)

    def _placed(self, y: Tensor, hidden: Tensor, up: Tensor, scales: Sequence[float], runs: Runs) -> Tensor:
        """y plus the changes with the factors of their runs, from hidden = down x."""
        alphas, rest = _divided([[scales[number] for number in run] for run, _ in runs])
        if any(scale != 1.0 for scale in rest):
            hidden = self._scaled(hidden, rest, up)
        pieces = [
            piece if factor is None else (piece * factor).to(piece.dtype)
            for piece, (_, factor) in zip(self._cut(hidden, runs), runs, strict=True)
        ]
        if len(set(alphas)) == 1:
            return self._raised(y, joined(pieces, 1), up, alphas[0])
        # Each run keeps its own `alpha`, so that a run with the factor 1 is rounded as without the others.
        for cut, own, alpha in zip(pieces, self._cut(up, runs), alphas, strict=True):
            y = self._raised(y, cut, own, alpha)
        return y

    def _scaled(self, hidden: Tensor, scales: Sequence[float], up: Tensor) -> Tensor:
        """down x with a scale for each layer.

        In float32: a scale that is rounded to the input's dtype puts all values off by the same share, and
        this error does not average out as random ones do.
        """
        diagonal = self.geometry.per_channel(self._diagonal(scales, up))
        return (hidden * diagonal).to(hidden.dtype)

    def _runs(self, factors: Factors) -> Runs:
        runs: list[tuple[list[int], Tensor | None]] = []
        for number, slot in enumerate(self._slots):
            factor = factors(slot)
            if runs and runs[-1][1] is factor:
                runs[-1][0].append(number)
            else:
                runs.append(([number], factor))
        return runs

    def _cut(self, values: Tensor, runs: Runs) -> Sequence[Tensor]:
        """The channels of down, which are second in `values`, of each run."""
        if len(runs) == 1:
            return [values]
        return torch.split(values, [sum(self._ranks[number] for number in run) for run, _ in runs], 1)

    def _raised(self, y: Tensor, hidden: Tensor, up: Tensor, alpha: float) -> Tensor:
        """y + alpha * up @ hidden."""
        if not self.geometry.kernel:
            return plus_product(y, hidden, up.T, alpha)
        if self.geometry.groups > 1:
            return y.add_(self.geometry.mix(hidden, up), alpha=alpha)
        total = y.flatten(2)
        raised = plus_product(total, up.expand(len(y), -1, -1), hidden.flatten(2), alpha)
        return y if raised is total else raised.view(y.shape)

    def _diagonal(self, scales: Sequence[float], like: Tensor) -> Tensor:
        """A factor for each row of down, kept until the strengths change."""
        key = tuple(scales)
        if self._held is None or self._held[0] != key:
            ranks = self._ranks * self.geometry.groups
            values = [
                value
                for value, rank in zip(key * self.geometry.groups, ranks, strict=True)
                for _ in range(rank)
            ]
            with outliving():
                diagonal = torch.tensor(values, dtype=compute_dtype(like.dtype)).to(like.device)
                self._held = (key, diagonal)
        return self._held[1]


def _divided(runs: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """An `alpha` for each run of scales, and what is left of each scale.

    The scale that all layers of a run share becomes its `alpha` and leaves 1. Else the `alpha` is 1.
    """
    even = [len(set(scales)) == 1 for scales in runs]
    alphas = [scales[0] if same else 1.0 for scales, same in zip(runs, even, strict=True)]
    rest = [1.0 if same else scale for scales, same in zip(runs, even, strict=True) for scale in scales]
    return alphas, rest


def _pair(
    geometry: Geometry, dtype: torch.dtype, device: torch.device, items: Sequence[Item]
) -> tuple[Tensor, Tensor]:
    """down (r, K) and up (O, r) of all forms."""
    forms: list[LowRank] = [item.form for item in items]
    down = joined([form.down.to(device, dtype) for form in forms], 0)
    up = joined([form.up.to(device, dtype) for form in forms], 1).contiguous()
    # Each group has channels of its own, and down is the same for all groups.
    return down.repeat(geometry.groups, 1) if geometry.groups > 1 else down, up


FORWARD = LowRankForward
