# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false
"""The kernel that adds all LoHa, LoKr and LoRA layers of a weight, each value read once and written once.

It works on blocks of the weight that stay in the cache. The sum of all layers is formed in float32 in a block
of its own: what else is to be added, the Hadamard terms sum_n (a1_n @ b1_n) * (a2_n @ b2_n), all LoRA layers
as one product, the Kronecker products. Last the block is added to the weight, which is rounded once.

`outer`, `product`, `combine` and `add_row` are generated as LLVM code on vectors, whose sums stay in
registers over all ranks: numba's own loops take 2.8 times as long, since LLVM makes them into vectors of half
the width and their sums pass through memory.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic

from .vectors import (
    COLUMNS,
    LANES,
    NUMBER,
    ROWS,
    VECTORS,
    at,
    fma,
    in_vectors,
    load,
    loop,
    prefetch,
    splat,
    store,
    stored_at,
)

TERM_ROWS = ROWS // 3
"""Rows of the tile of `outer`, which holds three: the sum, and both factors of a term."""

BLOCK_COLUMNS = 512
"""Columns of a block: (ROWS, BLOCK_COLUMNS) values are 24 KB at most, and stay in the first cache."""

FIELDS = 7
"""Integers of a set, N Kronecker layers of one factorisation: what is added to a row of the weight to get a
row of the product, N, i, k, j, and where among the factors w1 (l, i, N) and w2 (N, k, j) start."""


def _tile(builder, out, rows):
    """Where the vectors of a tile stand in a block, of which `out` is the tile's first value."""
    places = [n * BLOCK_COLUMNS + m * LANES for n in range(rows) for m in range(VECTORS)]
    return [builder.gep(out, [NUMBER(place)]) for place in places]


def _ranks(builder, rows, right, rank, sums):
    """`sums`, the vectors of a tile, plus left @ right (rank, COLUMNS), of the left's rows given as
    pointers."""
    vector, fused = fma(builder, LANES)

    def step(n, sums):
        strip = builder.gep(right, [builder.mul(n, NUMBER(COLUMNS))])
        row = [load(builder, builder.gep(strip, [NUMBER(LANES * m)]), vector) for m in range(VECTORS)]
        after = []
        for m, left in enumerate(rows):
            value = splat(builder, builder.load(builder.gep(left, [n])), vector)
            these = sums[m * VECTORS : (m + 1) * VECTORS]
            after += [builder.call(fused, [value, *two]) for two in zip(row, these, strict=True)]
        return after

    return loop(builder, NUMBER(0), rank, sums, step)


def _factors(builder, lefts, right, row, last, rows):
    """How to go through factors: for number n, with the first of its ranks, rows of the left, right, and
    rank."""
    lefts = at(builder, lefts, NUMBER)
    offsets = []
    for m in range(rows):
        within = builder.select(builder.icmp_signed("<", last, NUMBER(m)), last, NUMBER(m))
        offsets.append(builder.add(row, within))

    def factor(n, first):
        place = builder.mul(n, NUMBER(2))
        left = at(builder, builder.load(builder.gep(lefts, [place])))
        rank = builder.load(builder.gep(lefts, [builder.add(place, NUMBER(1))]))
        pointers = [builder.gep(left, [builder.mul(offset, rank)]) for offset in offsets]
        strip = builder.gep(right, [builder.mul(first, NUMBER(COLUMNS))])
        return builder.add(first, rank), (pointers, strip, rank)

    return factor


@intrinsic
def outer(typing, out, lefts, right, row, last, count):
    """A tile (TERM_ROWS, COLUMNS) of a block += the sum of `count` >= 1 Hadamard terms.

    out and right (T, COLUMNS) are addresses, and `lefts` that of the table, of which two lines are a term. Of
    the left factors, `row` and the rows behind it are meant; of those behind row + last, that one again.
    """

    def generate(context, builder, signature, arguments):
        out, lefts, right, row, last, count = arguments
        out, right, (vector, fused) = at(builder, out), at(builder, right), fma(builder, LANES)
        factor = _factors(builder, lefts, right, row, last, TERM_ROWS)
        zeros, places = [vector([0.0] * LANES)] * (TERM_ROWS * VECTORS), _tile(builder, out, TERM_ROWS)
        sums = [load(builder, place, vector) for place in places]

        def term(n, carried):
            first, sums = carried[0], carried[1:]
            twice = builder.mul(n, NUMBER(2))
            middle, one = factor(twice, first)
            one = _ranks(builder, *one, zeros)
            end, two = factor(builder.add(twice, NUMBER(1)), middle)
            two = _ranks(builder, *two, zeros)
            return [end, *[builder.call(fused, three) for three in zip(one, two, sums, strict=True)]]

        _, *sums = loop(builder, NUMBER(0), count, [NUMBER(0), *sums], term)
        for value, place in zip(sums, places, strict=True):
            store(builder, value, place)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@intrinsic
def product(typing, out, lefts, right, row, last, count):
    """A tile (ROWS, COLUMNS) of a block += the sum of `count` >= 1 products; the arguments are as for
    `outer`."""

    def generate(context, builder, signature, arguments):
        out, lefts, right, row, last, count = arguments
        out, right, vector = at(builder, out), at(builder, right), ir.VectorType(ir.FloatType(), LANES)
        factor, places = _factors(builder, lefts, right, row, last, ROWS), _tile(builder, out, ROWS)

        def one(n, carried):
            end, found = factor(n, carried[0])
            return [end, *_ranks(builder, *found, carried[1:])]

        sums = [load(builder, place, vector) for place in places]
        _, *sums = loop(builder, NUMBER(0), count, [NUMBER(0), *sums], one)
        for value, place in zip(sums, places, strict=True):
            store(builder, value, place)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@intrinsic
def combine(typing, out, length, scalars, rows, stride, count):
    """out[q] += sum_n scalars[n] * rows[n * stride + q] for q < length and n < count, both at least 1.

    Addresses, and the stride in values.
    """

    def generate(context, builder, signature, arguments):
        out, length, scalars, rows, stride, count = arguments
        out, scalars, rows = (at(builder, address) for address in (out, scalars, rows))

        def add(start, lanes, vectors):
            vector, fused = fma(builder, lanes)
            places = [builder.gep(out, [builder.add(start, NUMBER(lanes * m))]) for m in range(vectors)]

            def step(n, sums):
                row = builder.gep(rows, [builder.add(start, builder.mul(n, stride))])
                value = splat(builder, builder.load(builder.gep(scalars, [n])), vector)
                parts = [load(builder, builder.gep(row, [NUMBER(lanes * m)]), vector) for m in range(vectors)]
                return [builder.call(fused, [value, *two]) for two in zip(parts, sums, strict=True)]

            sums = [load(builder, place, vector) for place in places]
            for value, place in zip(loop(builder, NUMBER(0), count, sums, step), places, strict=True):
                store(builder, value, place)

        in_vectors(builder, length, add)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@intrinsic
def add_row(typing, out, stored, values, length):
    """out[n] += values[n] for n < length, at least 1, in float32 and rounded once.

    Addresses of what is stored and of float32 values; of `stored`, a value, only the type counts.
    """

    def generate(context, builder, signature, arguments):
        out, _, values, length = arguments
        out, read, write = stored_at(context, builder, out, stored)
        values = at(builder, values)

        def add(start, lanes, vectors):
            vector = ir.VectorType(ir.FloatType(), lanes)
            for m in range(vectors):
                place = builder.add(start, NUMBER(lanes * m))
                here, made = builder.gep(out, [place]), load(builder, builder.gep(values, [place]), vector)
                write(builder.fadd(read(here, lanes), made), here)

        in_vectors(builder, length, add)
        return context.get_dummy_value()

    return types.void(types.intp, stored, types.intp, types.intp), generate


@intrinsic
def fetch(typing, address, length):
    """Start to bring so many bytes, at least 1, into the cache: they will be written."""

    def generate(context, builder, signature, arguments):
        prefetch(builder, *arguments)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


def add_terms(weight, start, stop, lefts, terms, right, sets, factors, dense, block):
    """weight[start:stop] += all terms.

    A line of `lefts` (n, 2) is a left factor (rows, rank), float32 and a row after the other: its address and
    its rank. The first 2 * terms are those of Hadamard terms, the others of LoRA. right (strips, T, COLUMNS)
    has the right factors in the same order. A line of `sets` is FIELDS integers, which point into `factors`.
    dense, of the weight's shape if it is not empty, is added too. block (ROWS, BLOCK_COLUMNS) is room to work
    in.
    """
    columns, depth, size = weight.shape[1], right.shape[1], weight.itemsize
    paired = lefts[: 2 * terms, 1].sum()
    products, others = lefts.ctypes.data, lefts.ctypes.data + 2 * terms * lefts.strides[0]
    # The right factors of a block's columns stay in the cache for all of its rows.
    for column in range(0, columns, BLOCK_COLUMNS):
        width = min(BLOCK_COLUMNS, columns - column)
        for row in range(start, stop, ROWS):
            height = min(ROWS, stop - row)
            base = weight.ctypes.data + (row * columns + column) * size
            if len(dense):
                block[:height, :width] = dense[row : row + height, column : column + width]
            else:
                block[:height, :width] = 0
            # What is made beyond the height and the width is not used.
            for n in range(0, width, COLUMNS):
                for m in range(height):
                    fetch(base + (m * columns + n) * size, min(COLUMNS, width - n) * size)
                strip = right.ctypes.data + (column + n) * depth * 4
                tile = block.ctypes.data + n * 4
                if terms:
                    for m in range(0, height, TERM_ROWS):
                        here = tile + m * BLOCK_COLUMNS * 4
                        outer(here, products, strip, row + m, height - m - 1, terms)
                if paired < depth:
                    rest = strip + paired * COLUMNS * 4
                    product(tile, others, rest, row, height - 1, len(lefts) - 2 * terms)
            for s in range(len(sets)):
                offset, count, i, k, j, w1, w2 = sets[s]
                for m in range(height):
                    a, b = divmod(row + m + offset, k)
                    for c in range(column // j, (column + width - 1) // j + 1):
                        low, high = max(column, c * j), min(column + width, (c + 1) * j)
                        scalars = factors.ctypes.data + (w1 + (a * i + c) * count) * 4
                        values = factors.ctypes.data + (w2 + b * j + low - c * j) * 4
                        out = block.ctypes.data + (m * BLOCK_COLUMNS + low - column) * 4
                        combine(out, high - low, scalars, values, k * j, count)
            for m in range(height):
                made = block.ctypes.data + m * BLOCK_COLUMNS * 4
                add_row(base + m * columns * size, weight[row, column], made, width)


def lay_strips(strips, place, factor, scale):
    """Lay out a right factor (r, columns) times a number in strips (n, T, COLUMNS), from row `place` on."""
    rank, columns = factor.shape
    for row in range(rank):
        for strip in range(len(strips)):
            start = strip * COLUMNS
            if start + COLUMNS <= columns:
                for n in range(COLUMNS):
                    strips[strip, place + row, n] = factor[row, start + n] * scale
            else:
                strips[strip, place + row, :] = 0
                for n in range(columns - start):
                    strips[strip, place + row, n] = factor[row, start + n] * scale


def _digest():
    """Of this folder's code and name.

    A kernel on disk is found by its function's name and file. It is another one after a change in any file
    here, and where the package has another name, as under the host: numba imports the module by it.
    """
    digest = hashlib.sha256(__name__.encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


for _function in (add_terms, lay_strips):
    _function.__qualname__ += f"_{_digest()}"

SINGLES = {dimensions: types.Array(types.float32, dimensions, "C") for dimensions in (1, 2, 3)}
TABLE = types.Array(types.int64, 2, "C")


def compiled(stored: str):
    """`add_terms` for weights stored as "float32", or as the bits in "uint16" and "int16", as CONVERTED has.

    It is kept on disk: beside this file, or in the user's cache where this folder is read-only. Raises
    RuntimeError where numba is told not to compile.
    """
    weight, number = types.Array(getattr(types, stored), 2, "C"), types.intp
    arguments = (weight, number, number, TABLE, number, SINGLES[3], TABLE, SINGLES[1], SINGLES[2], SINGLES[2])
    return _on_disk(types.void(*arguments), add_terms)


def compiled_strips():
    """`lay_strips`, likewise."""
    return _on_disk(types.void(SINGLES[3], types.intp, SINGLES[2], types.float32), lay_strips)


def _on_disk(signature, function):
    if config.DISABLE_JIT:
        raise RuntimeError("numba's compiler is switched off (NUMBA_DISABLE_JIT)")
    with contextlib.suppress(Exception):
        # Fails without a folder that can be written, on a full disk, and on a broken file there.
        return njit(signature, nogil=True, cache=True)(function)
    return njit(signature, nogil=True)(function)
