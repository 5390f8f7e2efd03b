"""LoRA layers: all layers of one weight are added as one matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...changes.forms import LowRank
from .group import Factors

FORM = LowRank


@dataclass(frozen=True)
class LowRankGroup:
    """W += the sum of scale_n * strength_n * up_n @ down_n."""

    first: int
    """Index of the first layer's up in the plan's tensors; its down follows, then the next layer's pair."""
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    slots: tuple[int, ...]
    """The place of each layer in the plan's strengths."""

    @property
    def summary(self) -> str:
        return f"{len(self.ranks)} low-rank, one product of rank {sum(self.ranks)}"

    def products(self, tensors: Sequence[Tensor]) -> list[Factors]:
        return [
            Factors(tensors[self.first + 2 * n], tensors[self.first + 2 * n + 1], scale, slot)
            for n, (scale, slot) in enumerate(zip(self.scales, self.slots, strict=True))
        ]

    def bind(self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype) -> None:
        return None


def fuse(
    forms: Sequence[LowRank], slots: Sequence[int], first: int
) -> tuple[LowRankGroup, tuple[Tensor, ...]]:
    """One group of all low-rank forms, and their tensors."""
    group = LowRankGroup(
        first=first,
        ranks=tuple(form.down.shape[0] for form in forms),
        scales=tuple(form.scale for form in forms),
        slots=tuple(slots),
    )
    return group, tuple(tensor for form in forms for tensor in (form.up, form.down))
