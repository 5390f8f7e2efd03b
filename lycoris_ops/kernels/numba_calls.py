"""What the numba paths have in common: factors tabulated for a kernel, room to work in, and threads.

numba and its kernels are imported when the first weight comes that is for them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..algebra import flat_shape
from .group import Group
from .hadamard import HadamardGroup
from .low_rank import LowRankGroup
from .numba_kernels import job
from .registry import PathError, briefly
from .scratch import scratch_bytes

if TYPE_CHECKING:
    from .plan import PatchPlan

OLDEST = (0, 61)
"""The oldest numba that the kernels were tried with."""

STORED = {torch.float32: "float32", torch.bfloat16: "uint16", torch.float16: "int16"}
"""What kernels take for a dtype of torch's: numba has no type for the short ones."""

ZERO: dict[torch.dtype, Any] = {dtype: getattr(np, name)(0) for dtype, name in STORED.items()}
"""A value of each, by which a kernel knows how a weight is stored."""

SHARE = 1 << 18
"""Elements of the weight that a thread takes at most at a time, if a panel has no more: a fraction of a
millisecond."""

LEFT = 1 << 20
"""Values of the left factors that a thread lays out at once: 4 MB."""

LINE = 16
"""float32 values of a cache line: what is laid out begins at a multiple."""

KINDS = {torch.float32: job.FLOAT32, torch.float16: job.FLOAT16, torch.bfloat16: job.BFLOAT16}
"""How kernels call what factors are stored as; others are converted before."""


@cache
def kernels(name: str) -> Any:
    """A module of the kernels. Raises what importing numba raises."""
    return importlib.import_module(f".numba_kernels.{name}", __package__)


class Table:
    """Factors of Hadamard terms and LoRA layers in pairs, as kernels find them while the tensors live."""

    def __init__(self, groups: Sequence[tuple[Group, int]], tensors: Sequence[Tensor]) -> None:
        """The groups that have such, each from a row of its own on."""
        self.held: list[Tensor] = []
        """Copies of those that kernels cannot read as they are."""
        self.depth = 0
        """The ranks of all."""
        self._pairs: list[int] = []
        self._scales: list[tuple[float, int | None]] = []
        ranks: list[int] = []
        for group, low in groups:
            for one in group.as_products(tensors) if isinstance(group, HadamardGroup) else ():
                if one.rank:
                    self._add(one.left[0], one.right[0], low, one.scale, one.slot)
                    self._add(one.left[1], one.right[1], low, 1.0, None)
                    ranks += [right.shape[0] for right in one.right]
        for group, low in groups:
            for one in group.products(tensors) if isinstance(group, LowRankGroup) else ():
                if one.rank:
                    self._add(one.left[0], one.right[0], low, one.scale, one.slot)
        self.pairs = np.array(self._pairs, dtype=np.int64)
        self.ranks = np.array(ranks, dtype=np.int64)
        self.count, self.terms = len(self._scales), len(ranks) // 2

    def _add(self, left: Tensor, right: Tensor, low: int, scale: float, slot: int | None) -> None:
        left, right, rank = self._readable(left), self._readable(right), right.shape[0]
        first = left.data_ptr() + low * rank * left.itemsize
        self._pairs += [first, KINDS[left.dtype], right.data_ptr(), KINDS[right.dtype], rank, self.depth]
        self._scales.append((scale, slot))
        self.depth += rank

    def scales(self, strengths: Sequence[float]) -> Any:
        found = [scale if slot is None else scale * strengths[slot] for scale, slot in self._scales]
        return np.array(found, dtype=np.float32)

    def _readable(self, factor: Tensor) -> Tensor:
        known = factor.dtype in KINDS and (factor.dtype != torch.float16 or kernels("vectors").HALF)
        if known and factor.is_contiguous():
            return factor
        self.held.append((factor if known else factor.float()).contiguous())
        return self.held[-1]


Span = tuple[int, int, list[tuple[Group, int]], Table]
"""Rows between two bounds have the same layers: the bounds, each group with the first of its rows that is
meant, and the table of their factors."""


def spans(plan: PatchPlan, height: int, tensors: Sequence[Tensor]) -> list[Span]:
    """The spans of a weight's rows, kept with the plan for when the same tensors come again."""
    kept: _Kept | None = plan.kept.get("numba spans")
    if kept and kept.are(tensors):
        return kept.spans
    found = _spans(plan, height, tensors)
    if not any(table.held for *_, table in found):
        plan.kept["numba spans"] = _Kept.of(found, tensors)
    return found


@dataclass(frozen=True)
class _Kept:
    """The spans made of some tensors, which are not kept by it."""

    spans: list[Span]
    tensors: list[weakref.ref[Tensor]]
    addresses: list[int]

    @classmethod
    def of(cls, spans: list[Span], tensors: Sequence[Tensor]) -> _Kept:
        return cls(spans, [weakref.ref(one) for one in tensors], [one.data_ptr() for one in tensors])

    def are(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the tensors, and where they were."""
        same = all(one() is other for one, other in zip(self.tensors, tensors, strict=True))
        return same and self.addresses == [one.data_ptr() for one in tensors]


def _spans(plan: PatchPlan, height: int, tensors: Sequence[Tensor]) -> list[Span]:
    placed = [(group, rows or (0, height)) for group, rows in plan.groups]
    bounds = sorted({bound for _, rows in placed for bound in rows})
    found: list[Span] = []
    for start, stop in itertools.pairwise(bounds):
        here = [(group, start - low) for group, (low, high) in placed if low <= start and stop <= high]
        if here:
            found.append((start, stop, here, Table(here, tensors)))
    return found


Room = Callable[[str, int], Tensor]
"""So many bytes or more for a use, uninitialised."""


def reused(use: str, size: int) -> Tensor:
    """Room until this is called again in this thread."""
    return scratch_bytes(use, size, _CPU)


def fresh(use: str, size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


_CPU = torch.device("cpu")


Kernel = Callable[[torch.dtype], Any]
"""The kernel for a dtype of weights."""


@dataclass(frozen=True)
class Layout:
    """What a kernel needs room for beyond the factors of a table, in float32 values."""

    begin: int
    """At the beginning of a thread's room."""
    panel: int = 0
    """For a panel of left factors."""
    strip: int = 0
    """For a strip of right factors."""


@dataclass(frozen=True)
class Packed:
    """Layers as a kernel reads them, and all the memory that adding them takes."""

    kernel: Kernel
    held: tuple[Any, ...]
    """What the job has the addresses of, beside the layers' own tensors."""
    job: list[int]

    @classmethod
    def of(
        cls,
        kernel: Kernel,
        table: Table,
        strengths: Sequence[float],
        size: tuple[int, int],
        layout: Layout,
        room: Room,
    ) -> Packed:
        """A table for so many rows, or fewer at a time, and columns."""
        vectors, threads, (rows, columns) = kernels("vectors"), torch.get_num_threads(), size
        wide, depth = vectors.COLUMNS, table.depth
        most = max(1, min(rows, SHARE // columns, LEFT // max(1, depth)) // vectors.BLOCK_ROWS)
        levels = depth + vectors.LANES
        levels += -levels % LINE
        right = levels + -(-columns // wide) * (depth * wide + layout.strip)
        own = layout.begin + most * (kernels("laying").panel_values.py_func(depth) + layout.panel)
        own += -own % LINE
        buffer, scales = room("numba", 4 * (right + threads * own)), table.scales(strengths)
        address = buffer.data_ptr()
        fields = [0] * job.LENGTH
        fields[job.WIDTH], fields[job.THREADS], fields[job.MOST] = columns, threads, most
        fields[job.LEVELS], fields[job.RIGHT] = address, address + 4 * levels
        fields[job.OWN], fields[job.ROOM] = address + 4 * right, 4 * own
        fields[job.PAIRS], fields[job.COUNT], fields[job.DEPTH] = _address(table.pairs), table.count, depth
        fields[job.SCALES] = _address(scales)
        fields[job.RANKS], fields[job.TERMS] = _address(table.ranks), table.terms
        return cls(kernel, (table, buffer, scales), fields)

    def with_sets(self, sets: Sequence[int], factors: Tensor) -> Packed:
        """The same with sets of Kronecker layers."""
        found, fields = np.array(sets, dtype=np.int64), self.job.copy()
        fields[job.SETS], fields[job.SET_COUNT] = _address(found), len(sets) // job.FIELDS
        fields[job.FACTORS] = factors.data_ptr()
        return replace(self, held=(*self.held, found, factors), job=fields)

    def add(self, rows: Tensor, first: int) -> None:
        """rows (n, K), contiguous, += rows `first` and following of the layers' sum."""
        self.add_at(rows.data_ptr(), rows.shape[0], rows.dtype, first)

    def add_at(self, address: int, height: int, dtype: torch.dtype, first: int) -> None:
        """The same for so many rows of a dtype at an address."""
        columns = self.job[job.WIDTH]
        threads = min(self.job[job.THREADS], -(-height * columns // SHARE))
        kernel, zero = self.kernel(dtype), ZERO[dtype]
        slots = _SLOTS.of(kernel, threads)
        fields = self.job.copy()
        fields[job.WEIGHT], fields[job.HEIGHT], fields[job.ROW] = address, height, first
        fields[job.THREADS], fields[job.SLOTS], fields[job.JOINED] = threads, _address(slots), job.NEW
        numbers = np.array(fields, dtype=np.int64)

        def work(number: int, slots: Any) -> None:
            """`slots` are held, where the thread waits for more."""
            kernel(zero, numbers, number)

        others: list[Future[None]] = []
        interrupt: BaseException | None = None
        try:
            for number in range(1, threads):
                waits = slots[number, job.STATE] == job.WAITING
                slots[number, job.OFFERED] = waits
                # Where no other thread can be started, this one does it all.
                with contextlib.suppress(RuntimeError, MemoryError):
                    if not waits:
                        others.append(_pool(os.getpid()).submit(work, number, slots))
        except BaseException as error:  # noqa: BLE001 - raised below
            interrupt = error
        # The memory that the others work in is the next weight's: nothing ends it before they are through.
        done = False
        while not done:
            try:
                done = kernel(zero, numbers, 0)
                if not done:
                    time.sleep(0)
            except KeyboardInterrupt as error:
                interrupt = error
        for other in others:
            other.cancel()
        if interrupt:
            raise interrupt
        # What all read is laid out now.
        self.job[job.BY_ROWS : job.COUNTS] = numbers[job.BY_ROWS : job.COUNTS].tolist()


class _Slots(threading.local):
    """Where threads wait, for each thread that patches and each kernel."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, int], Any] = {}

    def of(self, kernel: Any, threads: int) -> Any:
        """At least so many, all of this process: after a fork nobody waits."""
        key = (kernel, os.getpid())
        found = self._found.get(key)
        if found is None or len(found) < threads:
            found = self._found[key] = np.zeros((threads, job.SLOT), dtype=np.int64)
        return found


_SLOTS = _Slots()


def _address(found: Any) -> int:
    return found.__array_interface__["data"][0]


Pack = Callable[[Sequence[tuple[Group, int]], Table, tuple[int, int], Room], Packed]
"""Groups, each from a row of its own on, and their table, for so many rows and columns."""


def check_compiled(kernel: Kernel, dtype: torch.dtype) -> None:
    """Raises PathError where there is no kernel after all; what is compiled is kept."""
    try:
        kernel(dtype)
    except MemoryError:
        raise
    except Exception as error:
        raise PathError(briefly(error)) from error


def add_to(plan: PatchPlan, weight: Tensor, tensors: Sequence[Tensor], pack: Pack) -> None:
    """weight, contiguous, += all layers of a plan, of which all is there before the first row changes."""
    height, columns = flat_shape(plan.final)
    found: list[tuple[int, int, Packed]] = []
    for start, stop, here, table in spans(plan, height, tensors):
        packed = pack(here, table, (stop - start, columns), fresh if found else reused)
        found.append((start, stop, packed))
    for start, stop, packed in found:
        address = weight.data_ptr() + start * columns * weight.itemsize
        packed.add_at(address, stop - start, weight.dtype, 0)


def unreachable(weight: Tensor) -> str | None:
    """Why a kernel cannot write to where a weight stands."""
    if not weight.data_ptr():
        return "the weight has no memory of its own"
    if weight.data_ptr() % weight.itemsize:
        return "the weight is not aligned"
    return None


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads for a process; those of one that forked are not in its child."""
    return ThreadPoolExecutor(os.cpu_count(), "numba")


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
