"""Triton on a GPU: one kernel launch for all weights that are alike, whatever layers change them."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import math
import os
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....maths.shapes import Rows, flat_shape
from ...groups.dense import DenseGroup
from ...groups.group import PathPlan
from ...groups.hadamard import HadamardGroup
from ...groups.kronecker import KroneckerGroup
from ...groups.low_rank import LowRankGroup
from ...registry import Patch, PatchPath, PathError, briefly

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton interprets kernels in Python, which works on the CPU too. Triton reads the variable when it
is imported."""

OLDEST = (3, 4)
"""The first version of Triton that compiles the kernel for all cards of TILES: earlier ones cannot read
bfloat16 on cards before Ampere."""

OLDEST_CARD = (7, 0)
"""The lowest NVIDIA compute capability that Triton compiles for."""

STORED = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes of factors that the kernel reads; factors of other dtypes are converted first."""

FIELDS = struct.Struct("<19qf4xq8x")
"""The fields of a term in the kernel's table, 8 bytes for each: 19 integers, the scale and an integer.

Eight unused bytes at the end make every term begin at a multiple of 16 bytes. For other addresses Triton
would compile another variant."""

ONCE = 1 << 30
"""A period beyond every row and column: the second factor does not repeat."""


@dataclass(frozen=True)
class Tile:
    """The rows and columns of the weight that one program works on, and its number of warps."""

    rows: int
    columns: int
    warps: int


TILES: dict[tuple[str, int], dict[str, Tile]] = {
    # The keys are the kind of card and the bytes of a weight's element. A program holds up to three tiles in
    # float32, and each takes at most 32 registers of a thread. A row of a tile is at least a cache line,
    # except in tall tiles.
    ("ampere", 2): {"square": Tile(64, 128, 8), "wide": Tile(16, 256, 4), "tall": Tile(128, 16, 4)},
    ("ampere", 4): {"square": Tile(64, 64, 8), "wide": Tile(16, 128, 4), "tall": Tile(128, 16, 4)},
    ("volta", 2): {"square": Tile(32, 128, 8), "wide": Tile(16, 128, 4), "tall": Tile(64, 16, 4)},
    ("volta", 4): {"square": Tile(32, 64, 8), "wide": Tile(16, 64, 4), "tall": Tile(64, 16, 4)},
    ("amd", 2): {"square": Tile(64, 64, 8), "wide": Tile(16, 128, 4), "tall": Tile(64, 16, 4)},
    ("amd", 4): {"square": Tile(32, 64, 4), "wide": Tile(16, 64, 4), "tall": Tile(64, 16, 4)},
}

THIN = 16
"""A weight of at most this many rows takes the wide tile, one of at most this many columns the tall one."""

RANK = 16
"""The part of a rank that is multiplied at once: the least that the matrix units of GPUs take."""

MOST = 65535
"""The most weights of one launch: what CUDA takes as the second size of a grid."""

STAGES = 2
"""Pipeline stages of the loop over a rank (Triton's `num_stages`). Most ranks take one step of the loop, and
each stage costs shared memory."""

PRECISION: dict[tuple[str, bool, int], str] = {
    # The keys are the kind of card, whether all multiplied factors are float16 or bfloat16, and the bytes of
    # a weight's element. tf32 holds float16 and bfloat16 exactly, so that their products in float32 are
    # exact. tf32x3, three products of tf32 parts, comes within 2^-21 of float32, far below the rounding of a
    # weight to two bytes. All other cases take "ieee", full float32.
    ("ampere", True, 2): "tf32",
    ("ampere", True, 4): "tf32",
    ("ampere", False, 2): "tf32x3",
}

Factor = tuple[Tensor, ...]
"""A matrix, or two matrices to be multiplied; () for a factor of ones."""


class Term(NamedTuple):
    """scale * first * second, multiplied value by value: one change of some rows of the weight.

    Row r, column c of the term is scale * first[r // block[0], c // block[1]] *
    second[r % period[0], c % period[1]].
    """

    scale: float
    first: Factor
    second: Factor = ()
    block: tuple[int, int] = (1, 1)
    """The number of rows and of columns that share one value of the first factor."""
    period: tuple[int, int] = (ONCE, ONCE)
    """The number of rows and of columns after which the second factor repeats."""


def _low_rank(group: LowRankGroup, tensors: Sequence[Tensor], strengths: Sequence[float]) -> list[Term]:
    return [
        Term(product.factor(strengths), (product.left, product.right)) for product in group.products(tensors)
    ]


def _hadamard(group: HadamardGroup, tensors: Sequence[Tensor], strengths: Sequence[float]) -> list[Term]:
    return [
        Term(first.factor(strengths), (first.left, first.right), (second.left, second.right))
        for first, second in group.pairs(tensors)
    ]


def _kronecker(group: KroneckerGroup, tensors: Sequence[Tensor], strengths: Sequence[float]) -> list[Term]:
    terms: list[Term] = []
    for term in group.terms:
        second = term.first + term.w1_count
        w1 = tuple(tensors[term.first : second])
        w2 = tuple(tensors[second : second + term.w2_count])
        size = (len(w2[0]), w2[-1].shape[1])
        terms.append(Term(term.scale * strengths[term.slot], w1, w2, size, size))
    return terms


def _dense(group: DenseGroup, tensors: Sequence[Tensor], strengths: Sequence[float]) -> list[Term]:
    return [Term(strengths[slot], (tensors[group.first + n],)) for n, slot in enumerate(group.slots)]


TERMS_OF: Mapping[type[Any], Callable[[Any, Sequence[Tensor], Sequence[float]], list[Term]]] = {
    LowRankGroup: _low_rank,
    HadamardGroup: _hadamard,
    KroneckerGroup: _kronecker,
    DenseGroup: _dense,
}
"""For each type of group, the function that makes its terms."""


def terms_of(patch: Patch) -> list[tuple[Term, Rows]]:
    """All changes of the weight as terms, each with the rows of the weight that it is added to."""
    return [
        (term, rows or (0, patch.plan.final[0]))
        for group, rows in patch.plan.groups
        for term in TERMS_OF[type(group)](group, patch.tensors, patch.strengths)
    ]


class TermTable(NamedTuple):
    """The terms of a weight as the kernel reads them, and what selects the kernel's compiled variant."""

    packed: bytes
    """The fields of each term, as `kernel.py` describes them."""
    kept: tuple[Tensor, ...]
    """The tensors whose addresses are among the fields: they must live until the kernel has run."""
    number: int
    """How many terms there are."""
    pairs: bool
    """Whether any term has a second factor."""
    plain: bool
    """Whether no term repeats values, and all factors can be read 16 bytes at once."""
    uniform: int
    """The index in STORED of the dtype that all tensors have; -1 where they differ."""
    halves: bool
    """Whether all tensors that are multiplied as matrices are float16 or bfloat16."""


def tabulate(terms: Sequence[tuple[Term, Rows]], address: int) -> TermTable:
    """Put the terms of the weight at an address into a table. Terms with an empty factor are left out."""
    packed, number = b"", 0
    kept: tuple[Tensor, ...] = ()
    pairs, plain, halves = False, True, True
    stored: set[int] = set()
    for term, (start, stop) in terms:
        first, of_first, length = _described(term.first)
        second, of_second, other = _described(term.second)
        if not all(factor.numel() for factor in (*first, *second)):
            continue
        number += 1
        # A scale beyond float32 becomes infinity, where `pack` would fail.
        scale = ctypes.c_float(term.scale).value
        packed += FIELDS.pack(
            *(start, stop, -start, *term.block, *term.period, *of_first, *of_second, scale, address)
        )
        kept += (*first, *second)
        pairs = pairs or bool(second)
        plain = plain and length and other and term.block == (1, 1) and term.period == (ONCE, ONCE)
        for factor, fields in ((first, of_first), (second, of_second)):
            if factor:
                stored.update(fields[2:4])
                halves = halves and (len(factor) == 1 or 0 not in fields[2:4])
    return TermTable(packed, kept, number, pairs, plain, stored.pop() if len(stored) == 1 else -1, halves)


def _described(factor: Factor) -> tuple[Factor, tuple[int, ...], bool]:
    """A factor as the kernel reads it: contiguous, in one of the dtypes STORED.

    With it come its six integers in the kernel's table, and whether the kernel can read it 16 bytes at once,
    as its PLAIN variant does.
    """
    if not factor:
        return (), (0, 0, 0, 0, -1, 0), True
    factor = tuple((tensor if tensor.dtype in STORED else tensor.float()).contiguous() for tensor in factor)
    left, right = factor[0], factor[-1]
    addresses = left.data_ptr(), right.data_ptr()
    ranks, columns = right.shape if len(factor) == 2 else (0, right.shape[1])
    stored = STORED.index(left.dtype), STORED.index(right.dtype)
    aligned = not (ranks % 8 or columns % 16 or addresses[0] % 16 or addresses[1] % 16)
    return factor, (*addresses, *stored, ranks, columns), aligned


def moved(packed: bytes, device: torch.device) -> Tensor:
    """Packed fields on the device as int64, in one transfer."""
    # torch warns of bytes, because they cannot be written.
    fields = torch.frombuffer(bytearray(packed), dtype=torch.int64)
    # A copy from pinned memory does not make the CPU wait for the GPU. torch keeps such memory until the copy
    # is done.
    return fields.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else fields


@cache
def card_of(device: torch.device) -> str:
    """The kind of card, as in TILES; the interpreter on a CPU counts as the newest."""
    if device.type == "cpu":
        return "ampere"
    if torch.version.hip:
        return "amd"
    return "ampere" if torch.cuda.get_device_capability(device) >= (8, 0) else "volta"


def launch_options(
    rows: int, columns: int, dtype: torch.dtype, card: str, table: TermTable
) -> dict[str, Any]:
    """The kernel's compile-time arguments for a weight (rows, columns) of `dtype`."""
    shape = "wide" if rows <= THIN else "tall" if columns <= THIN else "square"
    tile = TILES[card, dtype.itemsize][shape]
    return {
        "PAIRS": table.pairs,
        "PLAIN": table.plain,
        "UNIFORM": table.uniform,
        "PRECISION": PRECISION.get((card, table.halves, dtype.itemsize), "ieee"),
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "RANK": RANK,
        "num_warps": tile.warps,
        "num_stages": STAGES,
        "enable_fp_fusion": True,
    }


def column_stride(weight: Tensor) -> int | None:
    """The distance in elements from one column to the next of the weight as a matrix (O, K).

    None where the columns do not lie at equal distances.
    """
    if weight.is_contiguous():
        return 1
    step, extent = None, 0
    for size, stride in zip(weight.shape[:0:-1], weight.stride()[:0:-1], strict=True):
        # The stride of a dimension of size 1 has no meaning.
        if size == 1:
            continue
        if step is None:
            step = stride
        elif stride != extent:
            return None
        extent = stride * size
    return 1 if step is None else step


Ready = tuple[Patch, TermTable]
"""A patch whose terms are in a table."""


def _apply(patches: Sequence[Patch]) -> None:
    done: list[Patch] = []
    try:
        ready: list[Ready] = []
        for patch in patches:
            table = tabulate(terms_of(patch), patch.weight.data_ptr())
            if table.number and patch.weight.numel():
                ready.append((patch, table))
        _launch_all(ready, done)
    except PathError as error:
        ids = set(map(id, done))
        raise PathError(str(error), [patch for patch in patches if id(patch) not in ids]) from error


def _launch_all(ready: Sequence[Ready], done: list[Patch]) -> None:
    """Patch weights with one transfer for each device, and one launch for all weights that are alike.

    Patches go to `done` after their launch. Raises PathError where a launch fails.
    """
    sets: dict[object, list[Ready]] = {}
    for number, (patch, table) in enumerate(ready):
        sets.setdefault(_alike(patch, table) or number if len(ready) > 1 else 0, []).append((patch, table))
    devices: dict[torch.device, list[list[Ready]]] = {}
    for alike in sets.values():
        launches = devices.setdefault(alike[0][0].weight.device, [])
        launches += [alike[first : first + MOST] for first in range(0, len(alike), MOST)]
    for device, on_device in devices.items():
        fields = moved(b"".join(table.packed for alike in on_device for _, table in alike), device)
        start = 0
        for alike in on_device:
            _launch(alike, fields[start:] if start else fields)
            done += [patch for patch, _ in alike]
            start += sum(len(table.packed) for _, table in alike) // fields.itemsize


def _alike(patch: Patch, table: TermTable) -> tuple[object, ...] | None:
    """What weights must have in common to be patched by one launch.

    None for a weight that needs its own, because its address is not a multiple of 16 bytes.
    """
    weight = patch.weight
    if weight.data_ptr() % 16:
        return None
    layout = (patch.plan.final[0], weight.numel(), weight.stride(0), column_stride(weight))
    # All of the table but its bytes and tensors.
    return (weight.device, weight.dtype, *layout, *table[2:])


def _launch(alike: Sequence[Ready], fields: Tensor) -> None:
    """Patch weights that are alike by one launch. `fields` begins with the terms of all of them."""
    patch, table = alike[0]
    weight = patch.weight
    rows, columns = flat_shape(patch.plan.final)
    options = launch_options(rows, columns, weight.dtype, card_of(weight.device), table)
    tiles = math.ceil(rows / options["ROWS"]) * math.ceil(columns / options["COLUMNS"])
    here = torch.cuda.device(weight.device) if weight.is_cuda else contextlib.nullcontext()
    try:
        with here:
            _kernel()[tiles, len(alike)](
                weight,
                weight.stride(0),
                column_stride(weight),
                rows,
                columns,
                fields,
                table.number,
                MANY=len(alike) > 1,
                **options,
            )
    except Exception as error:
        # Triton compiles, loads and launches the kernel in one call, and the launch comes last. So an error
        # comes before anything is stored, and another path can take the weights. Only the interpreter can
        # fail midway.
        if INTERPRETED or isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
            raise
        # Triton's own error for a lack of memory is a RuntimeError.
        if "out of memory" in str(error):
            raise torch.cuda.OutOfMemoryError(str(error)) from error
        raise PathError(briefly(error), ()) from error


@cache
def _kernel() -> Any:
    # Triton is imported with the kernel, when the first weight on a GPU is patched.
    return importlib.import_module(".kernel", __package__).add_terms


@cache
def _needs() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        triton = importlib.import_module("triton")
        version = tuple(int(number) for number in triton.__version__.split(".")[:2])
        if version < OLDEST:
            return f"triton {triton.__version__} is too old, {'.'.join(map(str, OLDEST))} is needed"
        # Raises RuntimeError where there is no driver of a GPU.
        if not INTERPRETED:
            triton.runtime.driver.active.get_current_target()
    except (ImportError, OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        return f"triton does not work here: {briefly(error)}"
    return None


def _refuses(plan: PathPlan, weight: Tensor) -> str | None:
    if column_stride(weight) is None:
        return "the weight's columns have no common stride"
    if weight.is_cuda and not torch.version.hip:
        capability = torch.cuda.get_device_capability(weight.device)
        if capability < OLDEST_CARD:
            wanted, own = (".".join(map(str, version)) for version in (OLDEST_CARD, capability))
            return f"for compute capability {wanted} and newer, the card has {own}"
    return None


PATH = PatchPath(
    name="triton",
    priority=10,
    devices=("cuda", "cpu") if INTERPRETED else ("cuda",),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    apply=_apply,
    needs=_needs,
    refuses=_refuses,
)
