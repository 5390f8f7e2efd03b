"""numba on the CPU: LoHa, LoKr and LoRA layers, each value of a weight read and written once.

The kernel is compiled when the first weight of a dtype comes, in 2 to 4 seconds, and kept on disk.
numba is imported then, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...algebra import flat_shape
from ..group import Add, Group
from ..hadamard import HadamardGroup
from ..kronecker import KroneckerGroup
from ..low_rank import LowRankGroup
from ..numba_calls import (
    STORED,
    Layout,
    Packed,
    Room,
    Table,
    add_to,
    check_compiled,
    fresh,
    kernels,
    needs,
    unreachable,
)
from ..registry import Path
from . import bfloat16_product
from .torch_tiles import apply_tiles

if TYPE_CHECKING:
    from ..plan import PatchPlan

DEEP = 32
"""Rank from which on LoRA alone is added to a float32 weight faster than by a matrix product, which has less
to prepare (measured on two cores: 0.6 to 1.2 of its time from there on, 0.8 to 1.3 at half)."""


def _pack(
    groups: Sequence[tuple[Group, int]],
    table: Table,
    size: tuple[int, int],
    room: Room,
    tensors: Sequence[Tensor],
    strengths: Sequence[float],
) -> Packed:
    packed = Packed.of(_kernel, table, strengths, size, Layout(kernels("terms").BLOCK), room)
    layers = [(group, low) for group, low in groups if isinstance(group, KroneckerGroup)]
    return packed.with_sets(*_sets(layers, tensors, strengths, room)) if layers else packed


def _sets(
    layers: Sequence[tuple[KroneckerGroup, int]],
    tensors: Sequence[Tensor],
    strengths: Sequence[float],
    room: Room,
) -> tuple[list[int], Tensor]:
    """The kernel's `sets`, one for all layers of one factorisation, and its `factors`."""
    alike: dict[tuple[torch.Size, torch.Size, int], list[tuple[Tensor, Tensor, float]]] = {}
    for group, low in layers:
        for term in group.terms:
            w1, w2 = group.factors(term, tensors, torch.float32)
            scale = term.scale * strengths[term.slot]
            alike.setdefault((w1.shape, w2.shape, term.offset + low), []).append((w1, w2, scale))
    size = sum(len(found) * (one.numel() + two.numel()) for (one, two, _), found in alike.items())
    factors = room("numba factors", 4 * size)[: 4 * size].view(torch.float32)
    sets: list[int] = []
    place = 0
    for (first, second, offset), found in alike.items():
        count, middle = len(found), place + len(found) * first.numel()
        sets += [offset, count, first[1], *second, place, middle]
        one = factors[place:middle].view(*first, count)
        place = middle + count * second.numel()
        two = factors[middle:place].view(count, *second)
        for n, (w1, w2, scale) in enumerate(found):
            torch.mul(w1, scale, out=one[..., n])
            two[n].copy_(w2)
    return sets, factors


OWN = (HadamardGroup, KroneckerGroup, LowRankGroup)
"""The groups that the kernel adds."""


def _apply(plan: PatchPlan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> None:
    if not weight.numel():
        return
    direct = weight.is_contiguous() and all(isinstance(group, OWN) for group, _ in plan.groups)
    check_compiled(_kernel, weight.dtype if direct else torch.float32)

    def pack(groups: Sequence[tuple[Group, int]], table: Table, size: tuple[int, int], room: Room) -> Packed:
        return _pack(groups, table, size, room, tensors, strengths)

    if direct:
        add_to(plan, weight, tensors, pack)
        return

    def bind(
        group: Group,
        tensors: Sequence[Tensor],
        strengths: Sequence[float],
        dtype: torch.dtype,
        weight: Tensor,
    ) -> Add:
        here = [(group, 0)]
        return pack(here, Table(here, tensors), flat_shape(weight.shape), fresh).add

    apply_tiles(plan, weight, tensors, strengths, {HadamardGroup: bind, KroneckerGroup: bind})


@cache
def _kernel(dtype: torch.dtype) -> Any:
    return kernels("terms").kernel(STORED[dtype])


@cache
def _halves() -> bool:
    """Whether the kernel converts float16 here; where it cannot be imported, that is said when it is run."""
    try:
        return kernels("vectors").HALF
    except (ImportError, OSError, RuntimeError, ValueError):
        return True


def _refuses(plan: PatchPlan, weight: Tensor) -> str | None:
    groups = [group for group, _ in plan.groups]
    terms = [term for group in groups if isinstance(group, HadamardGroup) for term in group.terms]
    if not terms and not any(isinstance(group, KroneckerGroup) for group in groups):
        if not all(isinstance(group, LowRankGroup) for group in groups) or not weight.is_contiguous():
            return "no LoHa and no LoKr layers"
        ranks = sum(sum(group.ranks) for group in groups if isinstance(group, LowRankGroup))
        if weight.dtype == torch.float32 and ranks < DEEP:
            return f"LoRA alone is one product in float32: from rank {DEEP} on it is for numba"
    # Of LoHa, three products of rank r^2 against 2 r float32 operations of a sixteenth of the speed.
    if all(term.khatri_rao for term in terms) and bfloat16_product.PATH.refusal(plan, weight) is None:
        return "the processor multiplies layers of this rank faster in bfloat16"
    if weight.dtype == torch.float16 and not _halves():
        return "the processor does not convert float16"
    return unreachable(weight)


PATH = Path(
    name="numba",
    rank=30,
    devices=("cpu",),
    dtypes=tuple(STORED),
    apply=_apply,
    needs=needs,
    refuses=_refuses,
)
