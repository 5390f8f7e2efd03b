"""Layers laid out as the kernel reads them, and the threads that run it."""

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
"""What the kernel takes for a dtype of torch's: numba has no type for the short ones."""

SHARE = 1 << 18
"""Elements of the weight that a thread takes at a time: a fraction of a millisecond."""

ALONE = 1 << 14
"""Values that torch copies without its other threads."""

CPU = torch.device("cpu")

Room = Callable[[str, Sequence[int]], Tensor]
"""An uninitialised float32 tensor for a use, of a shape."""


def reused(use: str, shape: Sequence[int]) -> Tensor:
    return scratch(f"numba {use}", shape, torch.float32, CPU)


def fresh(use: str, shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=torch.float32)


@cache
def compiler(name: str) -> Any:
    """A module of this folder that imports numba. Raises what that raises."""
    return importlib.import_module(f".{name}", __package__)


@cache
def kernel_for(dtype: torch.dtype) -> Any:
    """The kernel for weights of a dtype, compiled."""
    return compiler("kernel").compiled(STORED[dtype])


@cache
def strips_kernel() -> Any:
    """What lays out right factors, compiled."""
    return compiler("kernel").compiled_strips()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads for a process; those of one that forked are not in its child."""
    return ThreadPoolExecutor(os.cpu_count(), "numba")


class Packed:
    """Groups of layers, each from a row of its own on, and all the memory that adding them takes.

    `size` is how many rows they are for, and the columns; `beside` (rows, columns) is what else is added.
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
        # Hadamard layers first, whose products stand in pairs, then LoRA.
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
        """rows (n, K), contiguous, += the layers' sum, by all threads."""
        short = rows.detach() if rows.dtype == torch.float32 else rows.detach().view(torch.int16)
        bits: Any = short.numpy()
        weight = bits.view(STORED[rows.dtype])
        threads, (_, height, _) = len(self.blocks), self.blocks.shape
        pieces = threads * -(-len(weight) * self.columns // (SHARE * threads))
        step = -(-len(weight) // (pieces * height)) * height
        starts, kernel = iter(range(0, len(weight), step)), kernel_for(rows.dtype)

        def work(block: Any) -> None:
            """Take rows until none are left."""
            for start in starts:
                kernel(weight, start, min(len(weight), start + step), *self.arguments, block)

        others: list[Future[None]] = []
        try:
            # Where no other thread can be started, this one does it all.
            with contextlib.suppress(RuntimeError, MemoryError):
                for block in self.blocks[1 : -(-len(weight) // step)]:
                    others.append(_pool(os.getpid()).submit(work, block))
            work(self.blocks[0])
        finally:
            for other in others:
                if not other.cancel():
                    other.result()


def _readable(factor: Tensor) -> Tensor:
    """The factor as the kernel reads it: float32, a row after the other."""
    found = factor.detach()
    if found.dtype == torch.float32 and found.is_contiguous():
        return found
    return _copied(torch.empty(found.shape), found)


def _copied(out: Tensor, source: Tensor) -> Tensor:
    """Copy by this thread alone: those that torch would share it with stay awake, and take time from ours."""
    flat, values = out.view(-1), source.reshape(-1)
    for start in range(0, flat.numel(), ALONE):
        flat[start : start + ALONE].copy_(values[start : start + ALONE])
    return out


def _sets(
    groups: Sequence[tuple[Group, int]], tensors: Sequence[Tensor], strengths: Sequence[float], room: Room
) -> tuple[list[int], Tensor]:
    """The kernel's `sets`, one for all LoKr layers of one factorisation, and its `factors`."""
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
        outer = factors[place:middle].view(*w1.shape, count)
        place = middle + count * w2.numel()
        inner = factors[middle:place].view(count, *w2.shape)
        for n, (w1, w2, factor) in enumerate(layers):
            torch.mul(w1, factor, out=outer[..., n])
            _copied(inner[n], w2)
    return sets, factors


def _matrices(term: KroneckerTerm, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """w1 (l, i) and w2 (k, j * prod(kernel))."""
    parts = [part.float() for part in term.parts(tensors)]
    w1, w2 = parts[: term.w1_count], parts[term.w1_count :]
    return w1[0] if len(w1) == 1 else w1[0] @ w1[1], w2[0] if len(w2) == 1 else w2[0] @ w2[1]


def _table(numbers: Sequence[int], width: int) -> Any:
    flat: Any = np.array(numbers, dtype=np.int64)
    return flat.reshape(-1, width)
