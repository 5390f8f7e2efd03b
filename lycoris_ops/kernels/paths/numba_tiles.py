"""numba on the CPU: LoHa, LoKr and LoRA layers, each value of a weight read and written once.

The kernel is compiled when the first weight of a dtype comes, in 0.6 to 1.5 seconds, and kept on disk.
numba is imported then, not before.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import os
import re
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

LEFT = 1 << 21
"""Values of the left factors that are laid out at once: 8 MB."""

MANY, DEEP = 1 << 22, 32
"""Elements and rank from which on LoRA alone is added to a float32 weight faster than by a matrix product,
which has less to prepare (measured on two cores: 0.7 to 1 of its time above, up to twice it below)."""

SHARE = 1 << 18
"""Elements of the weight that a thread takes at a time: a fraction of a millisecond."""

Room = Callable[[str, Sequence[int]], Tensor]
"""An uninitialised float32 tensor for a use, of a shape."""


def _reused(use: str, shape: Sequence[int]) -> Tensor:
    return scratch(f"numba {use}", shape, torch.float32, torch.device("cpu"))


def _fresh(use: str, shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=torch.float32)


@dataclass(frozen=True)
class Packed:
    """Layers laid out as the kernel reads them, and all the memory that adding them takes."""

    held: tuple[Tensor, ...]
    """What the table of left factors has the addresses of."""
    left: Tensor
    """Room for all left factors side by side, some rows at a time, in panels of BLOCK_ROWS."""
    arrays: tuple[Any, ...]
    """lefts, scales, right, ranks, sets and factors of the kernel."""
    blocks: tuple[Any, ...]
    """One a thread."""

    def add(self, rows: Tensor, first: int) -> None:
        """rows (n, K), contiguous, += rows `first` and following of the layers' sum."""
        short = rows.detach() if rows.dtype == torch.float32 else rows.detach().view(torch.int16)
        values: Any = short.numpy()
        weight = values.view(STORED[rows.dtype])
        height = len(self.left) * _terms().BLOCK_ROWS
        for start in range(0, len(weight), height):
            self._share(_kernel(rows.dtype), weight[start : start + height], first + start)

    def _share(self, kernel: Any, weight: Any, first: int) -> None:
        """Let every thread take rows until none are left, this one too."""
        step = max(1, SHARE // weight.shape[1])
        step += -step % _terms().BLOCK_ROWS
        starts = iter(range(0, len(weight), step))
        left = self.left.numpy()

        def work(block: Any) -> None:
            for start in starts:
                kernel(weight, start, min(len(weight), start + step), first, block, left, *self.arrays)

        threads = min(len(self.blocks), -(-len(weight) // step))
        others: list[Future[None]] = []
        # Where no thread can be started, this one does it all.
        with contextlib.suppress(RuntimeError):
            for block in self.blocks[1:threads]:
                others.append(_pool(os.getpid()).submit(work, block))
        try:
            work(self.blocks[0])
        finally:
            # The room that they work in is the next weight's.
            for other in others:
                if not other.cancel():
                    other.result()


def pack(
    groups: Sequence[tuple[Group, int]],
    rows: int,
    columns: int,
    tensors: Sequence[Tensor],
    strengths: Sequence[float],
    room: Room,
) -> Packed:
    """Lay out groups for `rows` rows (or fewer at a time), each from a row of its own on."""
    pairs: list[tuple[Product, int]] = []
    singles: list[tuple[Product, int]] = []
    layers: list[tuple[KroneckerGroup, int]] = []
    for group, low in groups:
        if isinstance(group, HadamardGroup):
            pairs += [(one, low) for one in group.as_products(tensors, strengths)]
        elif isinstance(group, LowRankGroup):
            singles += [(one, low) for one in group.products(tensors, strengths)]
        elif isinstance(group, KroneckerGroup):
            layers.append((group, low))
    pairs = [(one, low) for one, low in pairs if one.rank]
    singles = [(one, low) for one, low in singles if one.rank]
    lefts, rights = _Table(), _Table()
    scales: list[float] = []
    ranks: list[int] = []
    for one, low in pairs:
        for n, (left, right) in enumerate(zip(one.left, one.right, strict=True)):
            scales.append(1.0 if n else one.factor)
            lefts.add(left[low:], left.shape[1])
            rights.add(right, len(right))
            ranks.append(len(right))
    for one, low in singles:
        scales.append(one.factor)
        lefts.add(one.left[0][low:], one.rank)
        rights.add(one.right[0], one.rank)
    sets, factors = _sets(layers, tensors, strengths, room)
    depth, terms = sum(ranks) + sum(one.rank for one, _ in singles), _terms()
    panels = min(-(-rows // terms.BLOCK_ROWS), max(1, LEFT // max(1, depth * terms.BLOCK_ROWS)))
    blocks = room("blocks", (torch.get_num_threads(), terms.BLOCK_ROWS, terms.BLOCK_COLUMNS))
    right = room("right", (-(-columns // terms.COLUMNS), depth, terms.COLUMNS)).numpy()
    _lay_strips()(right, rights.numbers(), columns)
    return Packed(
        held=tuple(lefts.held),
        left=room("left", (panels, depth, terms.BLOCK_ROWS)),
        arrays=(
            lefts.numbers(),
            np.array(scales, dtype=np.float32),
            right,
            _table(ranks, 2),
            _table(sets, terms.FIELDS),
            factors.numpy(),
        ),
        blocks=tuple(blocks.numpy()),
    )


KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""How the kernel calls what factors are stored as; others are converted before."""


class _Table:
    """Factors side by side, as the kernel finds them: see PLACED in its module."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []
        self._rows: list[int] = []
        self._place = 0

    def add(self, factor: Tensor, rank: int) -> None:
        """A factor, each row of which is contiguous with the next."""
        known = factor.dtype in KINDS and (factor.dtype != torch.float16 or _terms().HALF)
        own = (factor if known else factor.float()).contiguous()
        self.held.append(own)
        self._rows += [own.data_ptr(), KINDS[own.dtype], rank, self._place]
        self._place += rank

    def numbers(self) -> Any:
        return _table(self._rows, _terms().PLACED)


def _table(numbers: Sequence[int], width: int) -> Any:
    flat: Any = np.array(numbers, dtype=np.int64)
    return flat.reshape(-1, width)


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
    size = sum(w1.numel() + w2.numel() for found in alike.values() for w1, w2, _ in found)
    factors = room("factors", (size,))
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
    try:
        _kernel(weight.dtype if direct else torch.float32)
        _lay_strips()
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
    return _terms().compiled(STORED[dtype])


@cache
def _lay_strips() -> Any:
    return _terms().compiled_strips()


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
