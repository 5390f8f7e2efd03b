"""numba on the CPU: LoHa, LoKr and LoRA layers, each value of a weight read and written once.

The kernel is compiled when the first weight of a dtype comes, in 1 to 2 seconds, and kept on disk. numba is
imported then, not before.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import re
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ....maths.scratch import forget
from ....maths.shapes import flat_shape
from ...groups.group import Plan, summed
from ...groups.hadamard import HadamardGroup
from ...groups.kronecker import KroneckerGroup
from ...groups.low_rank import LowRankGroup
from ...registry import PatchPath, PathError, briefly
from .. import bfloat16
from .packing import STORED, Packed, compiler, fresh, kernel_for, reused, strips_kernel

OLDEST = (0, 61)
"""The oldest numba that the kernel was tried with."""

DEEP = 32
"""Rank from which on LoRA alone is added to a float32 weight faster than by a matrix product, which has less
to prepare."""

OWN = (HadamardGroup, KroneckerGroup, LowRankGroup)
"""The groups that the kernel adds."""


def _apply(plan: Plan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> None:
    if not weight.numel():
        return
    try:
        kernel_for(weight.dtype)
        strips_kernel()
    except MemoryError:
        raise
    except Exception as error:
        raise PathError(briefly(error)) from error
    contiguous = weight.contiguous()
    try:
        _add(plan, contiguous.view(flat_shape(plan.final)), tensors, strengths, weight)
    except BaseException:
        # After an interrupt other threads may still work in these buffers: the next weight gets others.
        forget()
        raise
    if contiguous is not weight:
        weight.copy_(contiguous)


def _add(
    plan: Plan, flat: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float], weight: Tensor
) -> None:
    """Rows between two bounds have the same layers, whose sum is rounded once."""
    placed = [(group, rows or (0, len(flat))) for group, rows in plan.groups]
    others = summed([one for one in placed if not isinstance(one[0], OWN)], tensors, strengths, weight)
    bounds = {bound for _, rows in placed for bound in rows}
    found: list[tuple[Packed, Tensor]] = []
    for start, stop in itertools.pairwise(sorted(bounds)):
        here = [(group, start - low) for group, (low, high) in placed if low <= start and stop <= high]
        if here:
            beside = (
                None if others is None else others[0][max(0, start - others[1]) : max(0, stop - others[1])]
            )
            room = fresh if found else reused
            packed = Packed(here, (stop - start, flat.shape[1]), tensors, strengths, beside, room)
            found.append((packed, flat[start:stop]))
    for packed, rows in found:
        packed.add(rows)


@cache
def needs() -> str | None:
    """By what is installed: numba is not imported for weights that are for other paths."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    version = importlib.metadata.version("numba")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        return f"numba {version} is too old, {'.'.join(map(str, OLDEST))} is needed"
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed, which numba compiles with"
    return None


@cache
def _halves() -> bool:
    """Whether the kernel converts float16 here; where it cannot be imported, that is said when it is run."""
    try:
        return compiler("vectors").HALF
    except (ImportError, OSError, RuntimeError, ValueError):
        return True


def _refuses(plan: Plan, weight: Tensor) -> str | None:
    groups = [group for group, _ in plan.groups]
    if not any(isinstance(group, HadamardGroup | KroneckerGroup) for group in groups):
        if not all(isinstance(group, LowRankGroup) for group in groups):
            return "no LoHa and no LoKr layers"
        ranks = sum(sum(group.ranks) for group in groups if isinstance(group, LowRankGroup))
        if weight.dtype == torch.float32 and ranks < DEEP:
            return f"LoRA alone is one product in float32: from rank {DEEP} on it is for numba"
    if weight.dtype == torch.float32 and all(isinstance(group, KroneckerGroup) for group in groups):
        return "LoKr alone is faster by plain torch in float32"
    if bfloat16.PATH.refusal(plan, weight) is None:
        return "the processor multiplies LoRA alone faster in bfloat16"
    if weight.dtype == torch.float16 and not _halves():
        return "the processor does not convert float16"
    if not weight.data_ptr():
        return "the weight has no memory of its own"
    if weight.data_ptr() % weight.itemsize:
        return "the weight is not aligned"
    return None


PATH = PatchPath(
    name="numba",
    rank=30,
    devices=("cpu",),
    dtypes=tuple(STORED),
    apply=_apply,
    needs=needs,
    refuses=_refuses,
)
