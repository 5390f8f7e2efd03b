"""numba on the CPU: LoHa, LoKr and LoRA layers, each value of a weight read and written once.

The kernel is compiled when the first weight of a dtype comes, in 2 to 3 seconds, and kept on disk.
numba is imported then, not before.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...algebra import flat_shape
from ..group import Add, Group, Product
from ..hadamard import HadamardGroup
from ..kronecker import KroneckerGroup
from ..low_rank import LowRankGroup
from ..registry import Path, PathError, briefly
from ..scratch import scratch
from . import bfloat16_product
from .torch_tiles import apply_tiles

if TYPE_CHECKING:
    from ..plan import PatchPlan

OLDEST = (0, 61)
"""The oldest numba that the kernel was tried with."""

STORED = {torch.float32: "float32", torch.bfloat16: "uint16", torch.float16: "int16"}
"""What the kernel takes for a dtype of torch's: numba has no arrays of the short ones."""

LEFT = 1 << 20
"""Values of the left factors that a thread lays out at once: 4 MB."""

MANY, DEEP = 1 << 22, 32
"""Elements and rank from which on LoRA alone is added to a float32 weight faster than by a matrix product,
which has less to prepare (measured on two cores: 0.7 to 1 of its time above, up to twice it below)."""

SHARE = 1 << 18
"""Elements of the weight that a thread takes at most at a time: a fraction of a millisecond."""

Room = Callable[[int], Tensor]
"""So many float32 values, uninitialised."""

LINE = 16
"""Values of a cache line: what is laid out begins at a multiple."""


def _reused(size: int) -> Tensor:
    return scratch("numba", (size,), torch.float32, _CPU)


def _fresh(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.float32)


_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Packed:
    """Layers tabulated as the kernel reads them, and all the memory that adding them takes."""

    held: tuple[Tensor, ...]
    """What the table of factors has the addresses of."""
    arrays: tuple[Any, ...]
    """pairs, scales, right, ranks, sets and factors of the kernel."""
    rooms: tuple[tuple[Any, Any], ...]
    """block and left, a pair of them a thread."""
    laid: list[int]
    """One number: how many pairs are laid out in `right`, which the first `add` does."""

    def add(self, rows: Tensor, first: int) -> None:
        """rows (n, K), contiguous, += rows `first` and following of the layers' sum."""
        short = rows.detach() if rows.dtype == torch.float32 else rows.detach().view(torch.int16)
        values: Any = short.numpy()
        weight, kernel = values.view(STORED[rows.dtype]), _kernel(rows.dtype)
        threads = min(len(self.rooms), -(-weight.size // SHARE))
        shared = np.array([*self.laid, *self.laid, 0, 0], dtype=np.int64)

        def work(lead: bool, room: tuple[Any, Any]) -> None:
            while not kernel(weight, first, lead, threads, shared, *room, *self.arrays):
                time.sleep(0)

        others: list[Future[None]] = []
        # Where no other thread can be started, this one does it all.
        with contextlib.suppress(RuntimeError):
            for room in self.rooms[1:threads]:
                others.append(_pool(os.getpid()).submit(work, False, room))
        try:
            work(True, self.rooms[0])
        except BaseException:
            # The room that they work in is the next weight's.
            shared[:] = len(self.arrays[0]), len(self.arrays[0]), len(weight), len(weight)
            for other in others:
                if not other.cancel():
                    other.exception()
            raise
        self.laid[0] = len(self.arrays[0])
        for other in others:
            other.cancel()


def pack(
    groups: Sequence[tuple[Group, int]],
    rows: int,
    columns: int,
    tensors: Sequence[Tensor],
    strengths: Sequence[float],
    room: Room,
) -> Packed:
    """Lay out groups for `rows` rows (or fewer at a time), each from a row of its own on."""
    table = _Table()
    singles: list[tuple[Product, int]] = []
    layers: list[tuple[KroneckerGroup, int]] = []
    ranks: list[int] = []
    for group, low in groups:
        if isinstance(group, HadamardGroup):
            for one in group.as_products(tensors, strengths):
                if one.rank:
                    table.add(one.left[0], one.right[0], low, one.factor)
                    table.add(one.left[1], one.right[1], low, 1.0)
                    ranks += [right.shape[0] for right in one.right]
        elif isinstance(group, LowRankGroup):
            singles += [(one, low) for one in group.products(tensors, strengths)]
        elif isinstance(group, KroneckerGroup):
            layers.append((group, low))
    for one, low in singles:
        if one.rank:
            table.add(one.left[0], one.right[0], low, one.factor)
    alike = _alike(layers, tensors, strengths)
    depth, terms = table.depth, _terms()
    height, threads = terms.BLOCK_ROWS, torch.get_num_threads()
    most = max(1, min(rows, SHARE // columns, LEFT // max(1, depth)) // height)
    shapes = (
        (-(-columns // terms.COLUMNS), depth, terms.COLUMNS),
        (threads, height, terms.BLOCK_COLUMNS),
        (threads, most, depth + terms.LANES, height),
        (sum(len(found) * (first.numel() + second.numel()) for (first, second, _), found in alike.items()),),
    )
    sizes = [math.prod(shape) for shape in shapes]
    starts = list(itertools.accumulate((size + -size % LINE for size in sizes), initial=0))
    buffer = room(starts[-1])
    flat: Any = buffer.numpy()
    right, blocks, lefts, factors = (
        flat[start : start + size].reshape(shape)
        for start, size, shape in zip(starts, sizes, shapes, strict=False)
    )
    sets = _lay_sets(alike, buffer[starts[3] :]) if alike else []
    return Packed(
        held=(buffer, *table.held),
        arrays=(
            _table(table.rows, terms.PLACED),
            np.array(table.scales, dtype=np.float32),
            right,
            _table(ranks, 2),
            _table(sets, terms.FIELDS),
            factors,
        ),
        rooms=tuple(zip(blocks, lefts, strict=True)),
        laid=[0],
    )


KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""How the kernel calls what factors are stored as; others are converted before."""


class _Table:
    """Pairs of factors side by side, as the kernel finds them: see PLACED in its module."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []
        self.rows: list[int] = []
        self.scales: list[float] = []
        self.depth = 0
        """The ranks of all."""

    def add(self, left: Tensor, right: Tensor, low: int, scale: float) -> None:
        """A pair of which the left one is meant from a row on."""
        left, right, rank = _readable(left), _readable(right), right.shape[0]
        self.held += [left, right]
        first = left.data_ptr() + low * rank * left.itemsize
        self.rows += [first, KINDS[left.dtype], right.data_ptr(), KINDS[right.dtype], rank, self.depth]
        self.scales.append(scale)
        self.depth += rank


def _readable(factor: Tensor) -> Tensor:
    if factor.dtype not in KINDS or (factor.dtype == torch.float16 and not _terms().HALF):
        factor = factor.float()
    return factor.contiguous()


def _table(numbers: Sequence[int], width: int) -> Any:
    flat: Any = np.array(numbers, dtype=np.int64)
    return flat.reshape(-1, width)


Alike = dict[tuple[torch.Size, torch.Size, int], list[tuple[Tensor, Tensor, float]]]
"""w1, w2 and the scale of the layers of each Kronecker factorisation and row that they begin with."""


def _alike(
    layers: Sequence[tuple[KroneckerGroup, int]], tensors: Sequence[Tensor], strengths: Sequence[float]
) -> Alike:
    alike: Alike = {}
    for group, low in layers:
        for term in group.terms:
            w1, w2 = group.factors(term, tensors, torch.float32)
            scale = term.scale * strengths[term.slot]
            alike.setdefault((w1.shape, w2.shape, term.offset + low), []).append((w1, w2, scale))
    return alike


def _lay_sets(alike: Alike, factors: Tensor) -> list[int]:
    """The kernel's `sets`, one for all layers of one factorisation, and its `factors`."""
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
    return sets


OWN = (HadamardGroup, KroneckerGroup, LowRankGroup)
"""The groups that the kernel adds."""


def _apply(plan: PatchPlan, weight: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]) -> None:
    if not weight.numel():
        return
    direct = weight.is_contiguous() and all(isinstance(group, OWN) for group, _ in plan.groups)
    try:
        _kernel(weight.dtype if direct else torch.float32)
    except MemoryError:
        raise
    except Exception as error:
        raise PathError(briefly(error)) from error
    if direct:
        _add_directly(plan, weight.view(flat_shape(plan.final)), tensors, strengths)
    else:
        apply_tiles(plan, weight, tensors, strengths, {HadamardGroup: _bind, KroneckerGroup: _bind})


def _bind(
    group: Group, tensors: Sequence[Tensor], strengths: Sequence[float], dtype: torch.dtype, weight: Tensor
) -> Add:
    rows, columns = flat_shape(weight.shape)
    return pack([(group, 0)], rows, columns, tensors, strengths, _fresh).add


def _add_directly(
    plan: PatchPlan, flat: Tensor, tensors: Sequence[Tensor], strengths: Sequence[float]
) -> None:
    """Rows between two bounds have the same layers, whose sum is rounded once."""
    spans = [(group, rows or (0, len(flat))) for group, rows in plan.groups]
    bounds = sorted({bound for _, rows in spans for bound in rows})
    found: list[tuple[Packed, Tensor]] = []
    for start, stop in itertools.pairwise(bounds):
        here = [(group, start - low) for group, (low, high) in spans if low <= start and stop <= high]
        if here:
            room = _fresh if found else _reused
            packed = pack(here, stop - start, flat.shape[1], tensors, strengths, room)
            found.append((packed, flat[start:stop]))
    for packed, rows in found:
        packed.add(rows, 0)


@cache
def _terms() -> Any:
    return importlib.import_module("..numba_kernels.terms", __package__)


@cache
def _kernel(dtype: torch.dtype) -> Any:
    return _terms().kernel(STORED[dtype])


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads for a process; those of one that forked are not in its child."""
    return ThreadPoolExecutor(os.cpu_count(), "numba tiles")


@cache
def _needs() -> str | None:
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
        return _terms().HALF
    except (ImportError, OSError, RuntimeError, ValueError):
        return True


def _refuses(plan: PatchPlan, weight: Tensor) -> str | None:
    groups = [group for group, _ in plan.groups]
    terms = [term for group in groups if isinstance(group, HadamardGroup) for term in group.terms]
    if not terms and not any(isinstance(group, KroneckerGroup) for group in groups):
        if not all(isinstance(group, LowRankGroup) for group in groups) or not weight.is_contiguous():
            return "no LoHa and no LoKr layers"
        ranks = sum(sum(group.ranks) for group in groups if isinstance(group, LowRankGroup))
        if weight.dtype == torch.float32 and (weight.numel() < MANY or ranks < DEEP):
            return f"LoRA alone is one product in float32: of rank {DEEP} and {MANY} values it is for numba"
    # Of LoHa, three products of rank r^2 against 2 r float32 operations of a sixteenth of the speed.
    if all(term.khatri_rao for term in terms) and bfloat16_product.PATH.refusal(plan, weight) is None:
        return "the processor multiplies layers of this rank faster in bfloat16"
    if weight.dtype == torch.float16 and not _halves():
        return "the processor does not convert float16"
    if weight.data_ptr() % weight.itemsize:
        return "the weight is not aligned"
    return None


PATH = Path(
    name="numba",
    rank=30,
    devices=("cpu",),
    dtypes=tuple(STORED),
    apply=_apply,
    needs=_needs,
    refuses=_refuses,
)
