# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false
"""The kernel that adds all LoHa, LoKr and LoRA layers of a weight, each value read once and written once.

It works on blocks of the weight that stay in the cache, in float32. A block is first the sum of the
Hadamard terms, sum_n (a1_n @ b1_n) * (a2_n @ b2_n); then all LoRA layers are added to it as one product,
and the Kronecker terms; the weight is rounded once when the block is added to that. Where one product is
all, or one set of Kronecker terms, it is added to the weight itself.

`outer`, `product`, `combine` and `add_row` are generated here as LLVM code on vectors. In `outer`,
ROWS x COLUMNS values of the sum and of both products stay in registers over all ranks of all terms, in
`product` three times as many of one: numba's own loops take 2.8 times as long, since LLVM makes them into
vectors of half the width and their sums pass through memory.

Compiling takes 2 to 4 seconds for each dtype of weights; from disk it takes 0.1 seconds, beside the
import of numba.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .adding import add_row, clear, fetch, size_stored, tile
from .compiling import compiled, named
from .job import (
    DEPTH,
    DONE,
    FACTORS,
    FIELDS,
    OWN,
    RANKS,
    RIGHT,
    ROOM,
    ROW,
    SET_COUNT,
    SETS,
    TERMS,
    WEIGHT,
    WIDTH,
)
from .laying import lay_left, lay_right, panel_size
from .sharing import claim, shared, tell
from .vectors import (
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    COLUMNS,
    LANES,
    ROWS,
    VECTORS,
    fma,
    in_vectors,
    load,
    loop,
    prefetch,
    splat,
    store,
    stored_at,
    table,
)

BLOCK = BLOCK_ROWS * BLOCK_COLUMNS
"""Values at the beginning of a thread's room."""


def _ranks(builder, left, right, rows, start, stop, sums):
    """sums[rows, COLUMNS], as vectors, plus left (T, BLOCK_ROWS) transposed @ right (T, COLUMNS).

    Of the T those from start to stop - 1 are meant, at least one, and of left the first rows.
    """
    number = start.type
    vector, fused = fma(builder, LANES)

    def step(rank, sums):
        strip = builder.gep(right, [builder.mul(rank, number(COLUMNS))])
        panel = builder.gep(left, [builder.mul(rank, number(BLOCK_ROWS))])
        row = [load(builder, builder.gep(strip, [number(LANES * n)]), vector) for n in range(VECTORS)]
        after = []
        for n in range(rows):
            value = splat(builder, load(builder, builder.gep(panel, [number(n)])), vector)
            after += [builder.call(fused, [value, row[m], sums[n * VECTORS + m]]) for m in range(VECTORS)]
        return after

    return loop(builder, start, stop, sums, step)


@intrinsic
def outer(typing, out, left, right, ranks, count):
    """out[ROWS, COLUMNS] of a block = the sum of `count` >= 1 Hadamard terms; all are addresses but it.

    left (T, BLOCK_ROWS), of which the first ROWS are meant, and right (T, COLUMNS) hold both factors of a
    term, then those of the next; ranks (count, 2) are how many of the T each has, at least 1.
    """
    signature = types.void(*[types.intp] * 5)

    def generate(context, builder, signature, arguments):
        number, single = ir.IntType(64), ir.FloatType()
        vector, fused = fma(builder, LANES)
        out, left, right, ranks, count = arguments
        out, left, right = (builder.inttoptr(one, single.as_pointer()) for one in (out, left, right))
        ranks = builder.inttoptr(ranks, number.as_pointer())

        def term(n, carried):
            first, sums = carried[0], carried[1:]
            place = builder.mul(n, number(2))
            middle = builder.add(first, builder.load(builder.gep(ranks, [place])))
            last = builder.add(middle, builder.load(builder.gep(ranks, [builder.add(place, number(1))])))
            one = _ranks(builder, left, right, ROWS, first, middle, zeros)
            two = _ranks(builder, left, right, ROWS, middle, last, zeros)
            return [last, *[builder.call(fused, three) for three in zip(one, two, sums, strict=True)]]

        zeros = [vector([0.0] * LANES)] * (ROWS * VECTORS)
        _, *sums = loop(builder, number(0), count, [number(0), *zeros], term)
        for value, place in zip(sums, tile(builder, out, number(BLOCK_COLUMNS), ROWS), strict=True):
            store(builder, value, place)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def product(typing, out, stored, stride, left, right, rank):
    """out[BLOCK_ROWS, COLUMNS] += left (rank, BLOCK_ROWS) transposed @ right (rank, COLUMNS), rounded once.

    Addresses, a stride in values and a rank of at least 1; of `stored`, a value of `out`, only the type
    counts.
    """
    signature = types.void(types.intp, stored, *[types.intp] * 4)

    def generate(context, builder, signature, arguments):
        out, _, stride, left, right, rank = arguments
        left, right = (builder.inttoptr(one, ir.FloatType().as_pointer()) for one in (left, right))
        out, read, write = stored_at(context, builder, out, stored)
        vector, _ = fma(builder, LANES)
        for place in tile(builder, out, stride, BLOCK_ROWS):
            prefetch(builder, place)
        zeros = [vector([0.0] * LANES)] * (BLOCK_ROWS * VECTORS)
        sums = _ranks(builder, left, right, BLOCK_ROWS, rank.type(0), rank, zeros)
        for value, place in zip(sums, tile(builder, out, stride, BLOCK_ROWS), strict=True):
            write(builder.fadd(read(place, LANES), value), place)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def combine(typing, out, stored, length, scalars, rows, stride, count):
    """out[q] += sum_n scalars[n] * rows[n * stride + q] for q < length and n < count, both at least 1.

    Addresses, and the stride in values; of `stored`, a value of `out`, only the type counts. What is stored
    shorter than float32 is rounded once. Vectors first, what is left of the length by shorter ones.
    """
    signature = types.void(types.intp, stored, *[types.intp] * 5)

    def generate(context, builder, signature, arguments):
        number, single = ir.IntType(64), ir.FloatType()
        out, _, length, scalars, rows, stride, count = arguments
        scalars, rows = (builder.inttoptr(one, single.as_pointer()) for one in (scalars, rows))
        out, read, write = stored_at(context, builder, out, stored)

        def add(start, lanes, vectors):
            vector, fused = fma(builder, lanes)
            places = [builder.add(start, number(lanes * m)) for m in range(vectors)]

            def step(n, sums):
                row = builder.gep(rows, [builder.add(start, builder.mul(n, stride))])
                value = splat(builder, load(builder, builder.gep(scalars, [n])), vector)
                parts = [load(builder, builder.gep(row, [number(lanes * m)]), vector) for m in range(vectors)]
                return [builder.call(fused, [value, *two]) for two in zip(parts, sums, strict=True)]

            before = [read(builder.gep(out, [place]), lanes) for place in places]
            for value, place in zip(loop(builder, number(0), count, before, step), places, strict=True):
                write(value, builder.gep(out, [place]))

        in_vectors(builder, length, add)
        return context.get_dummy_value()

    return signature, generate


@njit
def _add_rows(zero, job, start, stop, block, left):
    """Rows `start` to `stop` of the weight += all terms, of which `left` has the factors for them."""
    columns, depth, size = job[WIDTH], job[DEPTH], size_stored(zero)
    ranks, sets = table(job[RANKS], job[TERMS], 2), table(job[SETS], job[SET_COUNT], FIELDS)
    paired, single = ranks.sum(), np.float32(0)
    # Rounded once without a block: a product is summed before it is added, and a set in registers, from a
    # weight on that is shorter than they are, or in one step.
    one_product = len(ranks) == 0 and len(sets) == 0
    one_set = depth == 0 and len(sets) == 1 and (size < 4 or sets[0, 1] == 1)
    # The right factors of a block's columns stay in the cache for all of its rows.
    for column in range(0, columns, BLOCK_COLUMNS):
        width = min(BLOCK_COLUMNS, columns - column)
        for row in range(start, stop, BLOCK_ROWS):
            height = min(BLOCK_ROWS, stop - row)
            base = job[WEIGHT] + (row * columns + column) * size
            # How many columns need no block: all of a set's, and those of whole tiles of a product.
            done = 0
            if one_set:
                done = width
            elif one_product and height == BLOCK_ROWS:
                done = width - width % COLUMNS
            if len(ranks) == 0 and done < width:
                clear(block, BLOCK)
            if depth:
                panel = left + (row - start) // BLOCK_ROWS * panel_size(job)
                # What is made beyond the height and the width is not used.
                for n in range(0, width, COLUMNS):
                    strip = job[RIGHT] + (column + n) * depth * 4
                    out = block + n * 4
                    if not one_product:
                        for m in range(height):
                            fetch(base + (m * columns + n) * size, min(COLUMNS, width - n) * size)
                    if len(ranks):
                        for m in range(0, height, ROWS):
                            here = out + m * BLOCK_COLUMNS * 4
                            outer(here, panel + m * 4, strip, job[RANKS], len(ranks))
                    if paired < depth:
                        own, here = panel + paired * BLOCK_ROWS * 4, strip + paired * COLUMNS * 4
                        rest = depth - paired
                        if n < done:
                            product(base + n * size, zero, columns, own, here, rest)
                        else:
                            product(out, single, BLOCK_COLUMNS, own, here, rest)
            else:
                for m in range(height):
                    fetch(base + m * columns * size, width * size)
            for s in range(len(sets)):
                offset, count = sets[s, 0], sets[s, 1]
                i, k, j = sets[s, 2], sets[s, 3], sets[s, 4]
                w1, w2 = job[FACTORS] + sets[s, 5] * 4, job[FACTORS] + sets[s, 6] * 4
                for m in range(height):
                    a, b = divmod(job[ROW] + row + m + offset, k)
                    for c in range(column // j, (column + width - 1) // j + 1):
                        low, high = max(column, c * j), min(column + width, (c + 1) * j)
                        scalars = w1 + (a * i + c) * count * 4
                        rows = w2 + (b * j + low - c * j) * 4
                        if one_set:
                            to = base + (m * columns + low - column) * size
                            combine(to, zero, high - low, scalars, rows, k * j, count)
                        else:
                            to = block + (m * BLOCK_COLUMNS + low - column) * 4
                            combine(to, single, high - low, scalars, rows, k * j, count)
            for m in range(height if done < width else 0):
                made = block + (m * BLOCK_COLUMNS + done) * 4
                add_row(base + (m * columns + done) * size, zero, made, width - done)


@njit(inline="always")
def _work(zero, job, number):
    """Rows of the weight += all terms, until none are left; False while what all read is not laid out.

    A thread's room begins with a block (BLOCK_ROWS, BLOCK_COLUMNS), then panels of left factors. What of
    the ranks is beyond those of Hadamard terms is for `product`.
    """
    if not lay_right(job, False):
        return False
    block = job[OWN] + number * job[ROOM]
    left = block + BLOCK * 4
    while True:
        start, stop = claim(job)
        if start == stop:
            return True
        lay_left(job, left, start, stop - start)
        _add_rows(zero, job, start, stop, block, left)
        tell(job, DONE, stop - start)


@named
def add_terms(zero, job, number):
    """Add all terms to the weight of a job, as one of its threads. `zero` is a value as it has."""
    return shared(_work, zero, job, number)


def kernel(stored: str):
    """`add_terms` for weights stored as "float32", or as the bits in "uint16" and "int16", as CONVERTED has.

    Raises RuntimeError where numba is told not to compile.
    """
    return compiled(add_terms, stored)
