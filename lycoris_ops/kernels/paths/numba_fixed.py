"""numba on the CPU: LoRA layers on bfloat16 weights, in fixed point.

The kernel is compiled when the first weight comes, in some seconds, and kept on disk. numba is imported
then, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..group import Group
from ..low_rank import LowRankGroup
from ..numba_calls import (
    STORED,
    Layout,
    Packed,
    Room,
    Table,
    add_to,
    check_compiled,
    kernels,
    needs,
    unreachable,
)
from ..registry import Path
from . import bfloat16_product

if TYPE_CHECKING:
    from ..plan import PatchPlan

DEEP = 32
"""Rank from which on this is faster than float32."""


def _apply(plan: PatchPlan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> None:
    if not weight.numel():
        return
    check_compiled(_kernel, weight.dtype)

    def pack(groups: Sequence[tuple[Group, int]], table: Table, size: tuple[int, int], room: Room) -> Packed:
        return Packed.of(_kernel, table, strengths, size, Layout(*kernels("fixed").layout(table.depth)), room)

    add_to(plan, weight, tensors, pack)


@cache
def _kernel(dtype: torch.dtype) -> Any:
    fixed = kernels("fixed")
    if not fixed.ABLE:
        raise RuntimeError("numba is told to compile for less than the processor is")
    return fixed.kernel(STORED[dtype])


def _needs() -> str | None:
    if not bfloat16_product.able("avx512_vnni"):
        return "the processor has no products of 16-bit integers (AVX512-VNNI)"
    return needs()


def _refuses(plan: PatchPlan, weight: Tensor) -> str | None:
    groups = [group for group, _ in plan.groups]
    if not all(isinstance(group, LowRankGroup) for group in groups):
        return "for LoRA alone"
    if sum(sum(group.ranks) for group in groups if isinstance(group, LowRankGroup)) < DEEP:
        return f"the ranks are less than {DEEP} together"
    if not weight.is_contiguous():
        return "the weight is not contiguous"
    if bfloat16_product.PATH.refusal(plan, weight) is None:
        return "the processor multiplies faster in bfloat16"
    return unreachable(weight)


PATH = Path(
    name="numba fixed-point",
    rank=25,
    devices=("cpu",),
    dtypes=(torch.bfloat16,),
    apply=_apply,
    needs=_needs,
    refuses=_refuses,
)
