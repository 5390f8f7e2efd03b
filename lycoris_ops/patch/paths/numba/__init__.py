"""numba on the CPU: a kernel adds LoHa, LoKr and LoRA layers, each value of a weight read and written once.

The kernel is compiled when the first weight of a dtype is patched, which takes 1 to 2 seconds, and kept on
disk. numba is imported at that moment, not before.
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
"""The oldest version of numba that the kernel was tried with."""

DEEP = 32
"""Sum of the ranks from which on this path adds LoRA alone to a float32 weight faster than a matrix product
does. A matrix product has less to prepare."""

OWN = (HadamardGroup, KroneckerGroup, LowRankGroup)
"""The types of groups that the kernel adds. All others are summed by torch first."""


def _apply(plan: Plan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> None:
    if not weight.numel():
        return
    try:
        # Compiled before anything else: where that fails, another path still finds the weight unchanged.
        kernel_for(weight.dtype)
        strips_kernel()
    except MemoryError:
        # A lack of memory passes: it says nothing about the path.
        raise
    except Exception as error:
        raise PathError(briefly(error)) from error
    contiguous = weight.contiguous()
    try:
        _add(plan, contiguous.view(flat_shape(plan.final)), tensors, strengths, weight)
    except BaseException:
        # After an interrupt other threads may still use these buffers: the next weight must get new ones.
        forget()
        raise
    if contiguous is not weight:
        weight.copy_(contiguous)


def _add(
    plan: Plan, flat: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float], weight: Tensor
) -> None:
    """Add all groups to `flat` (O, K), which is `weight` in contiguous memory.

    The weight is cut where the rows of a group begin or end. Between two cuts all rows have the same layers,
    which one call of the kernel adds, so that each value is rounded once.
    """
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
            # All layers are laid out before the weight changes: only the first can have the reused buffers.
            room = fresh if found else reused
            packed = Packed(here, (stop - start, flat.shape[1]), tensors, strengths, beside, room)
            found.append((packed, flat[start:stop]))
    for packed, rows in found:
        packed.add(rows)


@cache
def needs() -> str | None:
    """Why this path cannot run here, None where it can, judged by what is installed.

    numba is not imported for that, because other paths may take all weights.
    """
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
    """Whether the kernel can convert float16 on this processor.

    True where numba cannot be imported: the path then fails, and tells why, when it is run.
    """
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
            return f"LoRA alone is one product in float32, which below rank {DEEP} is faster than numba"
    if weight.dtype == torch.float32 and all(isinstance(group, KroneckerGroup) for group in groups):
        return "LoKr alone is faster by plain torch in float32"
    if bfloat16.PATH.refusal(plan, weight) is None:
        return "the processor multiplies LoRA alone faster in bfloat16"
    if weight.dtype == torch.float16 and not _halves():
        return "the processor does not convert float16"
    # The kernel reads and writes by address. A subclass of Tensor may hold its values elsewhere.
    if not weight.data_ptr():
        return "the weight has no memory of its own"
    if weight.data_ptr() % weight.itemsize:
        return "the weight is not aligned"
    return None


PATH = PatchPath(
    name="numba",
    priority=30,
    devices=("cpu",),
    dtypes=tuple(STORED),
    apply=_apply,
    needs=needs,
    refuses=_refuses,
)
