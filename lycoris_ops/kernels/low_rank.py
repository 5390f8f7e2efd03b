"""All LoRA layers of a weight as one product of concatenated factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..forms import LowRank
from .group import Add

FORM = LowRank


@dataclass(frozen=True)
class LowRankGroup:
    """W += [up_1 ... up_n] @ diag(scale * strength) @ [down_1; ...; down_n], one `addmm_`."""

    first: int
    """Index of the concatenated ups in the plan's tensors; the downs follow."""
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    slots: tuple[int, ...]

    @property
    def summary(self) -> str:
        return f"{len(self.ranks)} low-rank, one product of rank {sum(self.ranks)}"

    def bind(
        self, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
    ) -> Add:
        up, down = tensors[self.first].to(dtype), tensors[self.first + 1].to(dtype)
        factors = [
            scale * strengths[slot]
            for scale, slot, rank in zip(self.scales, self.slots, self.ranks, strict=True)
            for _ in range(rank)
        ]
        diagonal = torch.tensor(factors, dtype=dtype, device=up.device)
        if up.numel() < down.numel():
            up = up * diagonal
        else:
            down = down * diagonal[:, None]

        def add(rows: Tensor, first: int) -> None:
            rows.addmm_(up[first : first + len(rows)], down)

        return add


def fuse(
    forms: Sequence[LowRank], slots: Sequence[int], first: int
) -> tuple[LowRankGroup, tuple[Tensor, ...]]:
    """One group of all low-rank forms, and its two tensors."""
    group = LowRankGroup(
        first=first,
        ranks=tuple(form.down.shape[0] for form in forms),
        scales=tuple(form.scale for form in forms),
        slots=tuple(slots),
    )
    return group, (_joined([form.up for form in forms], 1), _joined([form.down for form in forms], 0))


def _joined(factors: list[Tensor], dim: int) -> Tensor:
    if len(factors) == 1:
        return factors[0]
    if len({factor.dtype for factor in factors}) > 1:
        factors = [factor.float() for factor in factors]
    return torch.cat(factors, dim)
