"""Layers laid out as the kernel reads them, and the threads that run the kernel."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....maths.scratch import scratch
from ...groups.group import Factors, Group
from ...groups.hadamard import HadamardGroup
from ...groups.kronecker import KroneckerGroup, KroneckerTerm
from ...groups.low_rank import LowRankGroup

STORED = {torch.float32: "float32", torch.bfloat16: "uint16", torch.float16: "int16"}
"""The type as which the kernel reads weights of each dtype: numba has none for bfloat16 and float16, so it
takes their bits."""

SHARE = 1 << 18
"""About how many elements of the weight a thread takes at a time: the work of a fraction of a millisecond."""

ALONE = 1 << 14
"""Number of values that torch copies without starting its other threads."""

CPU = torch.device("cpu")

Room = Callable[[str, Sequence[int]], Tensor]
"""A function (use, shape) that returns an uninitialised float32 tensor of this shape."""


def reused(use: str, shape: Sequence[int]) -> Tensor:
    return scratch(f"numba {use}", shape, torch.float32, CPU)


def fresh(use: str, shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=torch.float32)


@cache
def compiler(name: str) -> Any:
    """A module of this folder that imports numba, imported. Raises whatever the import of numba raises."""
    return importlib.import_module(f".{name}", __package__)


@cache
def kernel_for(dtype: torch.dtype) -> Any:
    """The compiled kernel for weights of a dtype."""
    return compiler("kernel").compiled(STORED[dtype])


@cache
def strips_kernel() -> Any:
    """The compiled function that lays out right factors in strips."""
    return compiler("kernel").compiled_strips()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process, by its id: a forked child has none of its parent's threads."""
    return ThreadPoolExecutor(os.cpu_count(), "numba")


class Packed:
    """The layers of some rows of a weight, laid out as the kernel reads them.

    All memory that the kernel needs is allocated here, before the weight changes. `groups` has each group
    with the row of its layers that is added to the first of these rows. `size` is the number of rows and of
    columns. `beside` (rows, columns) is a further change, or None. `room` makes the buffers.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Group, int]],
        size: tuple[int, int],
        tensors: Sequence[Tensor],
        strengths: Sequence[float],
        beside: Tensor | None,
        room: Room,
    ) -> None:
        columns, form = size[1], compiler("kernel")
        # The kernel expects the products of the Hadamard terms first, in pairs, and then those of LoRA.
        factors: list[tuple[Factors, int]] = []
        for group, low in groups:
            for one, two in group.pairs(tensors) if isinstance(group, HadamardGroup) else ():
                if one.rank and two.rank:
                    factors += [(one, low), (two, low)]
        terms = len(factors) // 2
        for group, low in groups:
            products = group.products(tensors) if isinstance(group, LowRankGroup) else ()
            factors += [(one, low) for one in products if one.rank]
        self.held = [_readable(one.left[low:]) for one, low in factors]
        depth, place = sum(one.rank for one, _ in factors), 0
        strips: Any = room("right", (-(-columns // form.COLUMNS), depth, form.COLUMNS)).numpy()
        for one, _ in factors:
            strips_kernel()(strips, place, _readable(one.right).numpy(), one.factor(strengths))
            place += one.rank
        sets, outer = _sets(groups, tensors, strengths, room)
        lefts = [number for left in self.held for number in (left.data_ptr(), left.shape[1])]
        tables = (_table(lefts, 2), terms, strips, _table(sets, form.FIELDS), outer.numpy())
        dense: Any = torch.empty(0, 0) if beside is None else beside
        self.arguments = (*tables, dense.numpy())
        self.columns = max(columns, depth)
        threads = torch.get_num_threads()
        self.blocks: Any = room("blocks", (threads, form.ROWS, form.BLOCK_COLUMNS)).numpy()

    def add(self, rows: Tensor) -> None:
        """Add the sum of the layers to `rows` (n, K), which is contiguous, by all threads."""
        # numpy has no bfloat16: weights of two bytes pass as int16 and are then viewed as the kernel's type.
        short = rows.detach() if rows.dtype == torch.float32 else rows.detach().view(torch.int16)
        bits: Any = short.numpy()
        weight = bits.view(STORED[rows.dtype])
        threads, (_, height, _) = len(self.blocks), self.blocks.shape
        # A multiple of the threads, so that each can have the same share; a piece ends at the end of a tile.
        pieces = threads * -(-len(weight) * self.columns // (SHARE * threads))
        step = -(-len(weight) // (pieces * height)) * height
        starts, kernel = iter(range(0, len(weight), step)), kernel_for(rows.dtype)

        def work(block: Any) -> None:
            """Take the next piece of rows until none is left."""
            for start in starts:
                kernel(weight, start, min(len(weight), start + step), *self.arguments, block)

        others: list[Future[None]] = []
        try:
            # Where no other thread can be started, this one does all the work.
            with contextlib.suppress(RuntimeError, MemoryError):
                for block in self.blocks[1 : -(-len(weight) // step)]:
                    others.append(_pool(os.getpid()).submit(work, block))
            work(self.blocks[0])
        finally:
            # Threads that have begun use this weight and its buffers: they must end, even after an error.
            for other in others:
                if not other.cancel():
                    other.result()


def _readable(factor: Tensor) -> Tensor:
    """The factor as the kernel reads it: contiguous float32, the tensor itself where it is so already."""
    found = factor.detach()
    if found.dtype == torch.float32 and found.is_contiguous():
        return found
    return _copied(torch.empty(found.shape), found)


def _copied(out: Tensor, source: Tensor) -> Tensor:
    """Copy `source` into `out` by this thread alone.

    Threads of torch that share in a copy stay awake after it, and take time from the threads of the kernel.
    """
    flat, values = out.view(-1), source.reshape(-1)
    for start in range(0, flat.numel(), ALONE):
        flat[start : start + ALONE].copy_(values[start : start + ALONE])
    return out


def _sets(
    groups: Sequence[tuple[Group, int]], tensors: Sequence[Tensor], strengths: Sequence[float], room: Room
) -> tuple[list[int], Tensor]:
    """The kernel's `sets` and `factors`: one set for all LoKr layers of a group with the same factorisation.

    Scales and strengths are multiplied into w1.
    """
    found = [
        ([(*_matrices(term, tensors), term.factor(strengths)) for term in terms], terms[0].offset + low)
        for group, low in groups
        if isinstance(group, KroneckerGroup)
        for terms in group.sets(tensors)
    ]
    factors = room("factors", (sum(w1.numel() + w2.numel() for layers, _ in found for w1, w2, _ in layers),))
    sets: list[int] = []
    place = 0
    for layers, offset in found:
        (w1, w2, _), count = layers[0], len(layers)
        middle = place + count * w1.numel()
        sets += [offset, count, w1.shape[1], *w2.shape, place, middle]
        # w1 lies as (l, i, N): the kernel reads the values of all N layers for one block as one row.
        outer = factors[place:middle].view(*w1.shape, count)
        place = middle + count * w2.numel()
        inner = factors[middle:place].view(count, *w2.shape)
        for n, (w1, w2, factor) in enumerate(layers):
            torch.mul(w1, factor, out=outer[..., n])
            _copied(inner[n], w2)
    return sets, factors


def _matrices(term: KroneckerTerm, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The factors w1 (l, i) and w2 (k, j * prod(kernel)) of a layer in float32."""
    parts = [part.float() for part in term.parts(tensors)]
    w1, w2 = parts[: term.w1_count], parts[term.w1_count :]
    return w1[0] if len(w1) == 1 else w1[0] @ w1[1], w2[0] if len(w2) == 1 else w2[0] @ w2[1]


def _table(numbers: Sequence[int], width: int) -> Any:
    flat: Any = np.array(numbers, dtype=np.int64)
    return flat.reshape(-1, width)
