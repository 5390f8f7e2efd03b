"""Plain torch on any device: tiles that stay in the cache, a matrix product or an outer product each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...algebra import compute_dtype, flat_shape
from ..group import Add, Group, placed, row_tiles
from ..registry import Path
from ..scratch import scratch

if TYPE_CHECKING:
    from ..plan import PatchPlan

Bind = Callable[[Group, Sequence[Tensor], Sequence[float], torch.dtype, Tensor], Add]


def apply_tiles(
    plan: PatchPlan,
    weight: Tensor,
    tensors: Sequence[Tensor],
    strengths: Sequence[float],
    binds: Mapping[type[Group], Bind],
) -> None:
    """Add every group to tiles of the weight, in place, the sum formed in float32 and rounded once.

    `binds` replaces the groups' own `bind` for some of them.
    """
    dtype = compute_dtype(weight.dtype)
    adds: list[Add] = []
    for group, rows in plan.groups:
        met = weight if rows is None else weight[slice(*rows)]
        bind = binds.get(type(group))
        add = (
            bind(group, tensors, strengths, dtype, met)
            if bind
            else group.bind(tensors, strengths, dtype, met)
        )
        adds.append(add if rows is None else placed(add, *rows))
    count, columns = flat_shape(plan.final)
    tiles = row_tiles(count, columns)
    if weight.dtype == dtype and weight.is_contiguous():
        flat = weight.view(count, columns)
        for first, last in tiles:
            for add in adds:
                add(flat[first:last], first)
        return
    buffer = scratch("tile", (tiles[0][1], columns), dtype, weight.device)
    for first, last in tiles:
        piece = weight[first:last]
        tile = buffer[: last - first]
        shaped = tile.view(piece.shape)
        shaped.copy_(piece)
        for add in adds:
            add(tile, first)
        piece.copy_(shaped)


def _apply(plan: PatchPlan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> None:
    apply_tiles(plan, weight, tensors, strengths, {})


PATH = Path(
    name="torch",
    rank=100,
    devices=("cpu", "cuda", "mps", "xpu", "npu", "mlu", "privateuseone"),
    dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    apply=_apply,
    needs=lambda: None,
)
