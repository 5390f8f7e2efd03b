# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false
"""The kernel that adds all LoHa, LoKr and LoRA layers of a weight, and reads and writes each value once.

It works on blocks of the weight that are small enough for the cache. For each block, the sum of all layers is
formed in float32 in a buffer of the block's size, in this order: the full matrix of all other changes, the
Hadamard terms sum_n (a1_n @ b1_n) * (a2_n @ b2_n), all LoRA layers as one product, the Kronecker products.
At last the buffer is added to the weight, which rounds each value once.

`outer`, `product`, `combine` and `add_row` are generated as LLVM code on vectors, whose sums stay in
registers over all ranks. Loops in numba take 2.8 times as long: LLVM turns them into vectors of half the
width, and their sums pass through memory.
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
"""Rows of a tile in `outer`, which holds three in registers: the sum, and the two products of a term."""

BLOCK_COLUMNS = 512
"""Columns of a block. ROWS x BLOCK_COLUMNS values are 24 KB at most and stay in the first-level cache."""

FIELDS = 7
"""Number of integers that describe a set of N Kronecker layers with the same factorisation. They are, in this
order: what is added to a row of the weight to get the row of the product; N; i; k; j; the index in `factors`
where w1 (l, i, N) starts; the index where w2 (N, k, j) starts."""


def _tile(builder, out, rows):
    """Pointers to the vectors of a tile of `rows` rows in a block; `out` points to the tile's first value."""
    places = [n * BLOCK_COLUMNS + m * LANES for n in range(rows) for m in range(VECTORS)]
    return [builder.gep(out, [NUMBER(place)]) for place in places]


def _ranks(builder, rows, right, rank, sums):
    """Add left @ right to `sums`, the vectors of a tile, and return the new vectors.

    `rows` points to each row of the left factor (rows, rank), `right` to the right factor (rank, COLUMNS).
    """
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
    """Make a function that finds the factors of product n in the table `lefts` and the strip `right`.

    Its arguments are n and the sum of the ranks before it. It returns the sum with this rank, and a tuple of
    pointers to `rows` rows of the left factor from row `row` on, a pointer to the right factor, and the rank.
    Rows beyond row + last do not exist; row + last is used for them.
    """
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

    The other arguments are integers:

    - out: the address of the tile's first value.
    - lefts: the address of the first term in the table of left factors; each term takes two lines.
    - right: the address of the right factors (T, COLUMNS), one below the other, T the sum of their ranks.
    - row: the row of the left factors that is the tile's first one.
    - last: the tile's last row that exists. It stands in for the rows after it, whose results are not used.
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
    """A tile (ROWS, COLUMNS) of a block += the sum of `count` >= 1 products left @ right.

    The arguments are those of `outer`; each product takes one line of the table.
    """

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

    out, scalars and rows are addresses of float32 values, and the stride is a number of values.
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
    """out[n] += values[n] for n < length, which is at least 1; added in float32 and rounded once.

    out and values are addresses. The values are float32. `stored` is any value of the type that `out` holds:
    only its type counts.
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
    """Start to bring `length` >= 1 bytes at an address into the cache, to be written later."""

    def generate(context, builder, signature, arguments):
        prefetch(builder, *arguments)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


def add_terms(weight, start, stop, lefts, terms, right, sets, factors, dense, block):
    """weight[start:stop] += the sum of all layers.

    - weight (rows, columns): as `compiled` describes it.
    - lefts (n, 2): the address and the rank of each left factor (rows, rank), a contiguous float32 matrix.
      The first 2 * terms lines are the Hadamard terms, two for each. The others are LoRA layers.
    - right (strips, T, COLUMNS): the right factors in the order of `lefts`, T the sum of the ranks, cut into
      strips of COLUMNS columns and filled up with zeros.
    - sets (sets, FIELDS): the Kronecker layers, see FIELDS.
    - factors: the values of their w1 and w2, one after the other.
    - dense (rows, columns): a further change; empty where there is none.
    - block (ROWS, BLOCK_COLUMNS): a buffer, for this thread alone.
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
            # Tiles may reach beyond the height and the width of the block. Those values are not used.
            for n in range(0, width, COLUMNS):
                # The weight comes into the cache while its change is computed.
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
    """Write scale * factor (r, columns) into `strips` (n, T, COLUMNS), from row `place` of each strip on.

    The last strip is filled up with zeros.
    """
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
    """A short hash of the code in this folder and of the package's name, for the names of the kernels.

    numba finds a kernel on disk by its function's name and file. The hash makes it another kernel after a
    change in any file here, and where the package has another name, as in ComfyUI: numba imports the module
    of a stored kernel by the package's name.
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
    """`add_terms`, compiled for weights stored as "float32", "uint16" or "int16", see CONVERTED.

    The compiled kernel is kept on disk: beside this file, or in the user's cache where this folder is
    read-only. Raises RuntimeError where numba is told not to compile.
    """
    weight, number = types.Array(getattr(types, stored), 2, "C"), types.intp
    arguments = (weight, number, number, TABLE, number, SINGLES[3], TABLE, SINGLES[1], SINGLES[2], SINGLES[2])
    return _on_disk(types.void(*arguments), add_terms)


def compiled_strips():
    """`lay_strips`, compiled and kept on disk likewise."""
    return _on_disk(types.void(SINGLES[3], types.intp, SINGLES[2], types.float32), lay_strips)


def _on_disk(signature, function):
    # `njit` would return the plain function, and intrinsics cannot run in Python.
    if config.DISABLE_JIT:
        raise RuntimeError("numba's compiler is switched off (NUMBA_DISABLE_JIT)")
    with contextlib.suppress(Exception):
        # Fails where no folder can be written to, on a full disk, and on a broken file there. Each process
        # then compiles the kernel anew.
        # Without the interpreter's lock, since several threads run the kernel at once.
        return njit(signature, nogil=True, cache=True)(function)
    return njit(signature, nogil=True)(function)
