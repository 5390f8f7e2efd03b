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

Compiling takes 2 to 3 seconds for each dtype of weights; from disk it takes 0.1 seconds, beside the
import of numba.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .compiling import array, compiled, named
from .laying import lay_panel, lay_strips, size_of
from .sharing import DONE, LAID, TAKEN, claim, reached, tell
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
)
from .vectors import (
    HALF as HALF,
)

FIELDS = 7
"""Integers of a Kronecker set, as `add_terms` unpacks them."""

PLACED = 6
"""Integers of a pair of factors to lay out, as `add_terms` unpacks them: the address of the left one and how
it is stored, those of the right one, their rank, and the first of its places. The left one is (rows, rank),
the right one (rank, columns)."""


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


def _tile(builder, out, stride, rows):
    """Where the vectors of rows x COLUMNS stand, of which `out` is the first value."""
    number = stride.type
    starts = [builder.mul(stride, number(n)) for n in range(rows)]
    places = [builder.add(start, number(LANES * m)) for start in starts for m in range(VECTORS)]
    return [builder.gep(out, [place]) for place in places]


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
        for value, place in zip(sums, _tile(builder, out, number(BLOCK_COLUMNS), ROWS), strict=True):
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
        for place in _tile(builder, out, stride, BLOCK_ROWS):
            prefetch(builder, place)
        zeros = [vector([0.0] * LANES)] * (BLOCK_ROWS * VECTORS)
        sums = _ranks(builder, left, right, BLOCK_ROWS, rank.type(0), rank, zeros)
        for value, place in zip(sums, _tile(builder, out, stride, BLOCK_ROWS), strict=True):
            write(builder.fadd(read(place, LANES), value), place)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def fetch(typing, address, length):
    """Start to bring so many bytes, at least 1, into the cache: they will be written."""
    signature = types.void(types.intp, types.intp)

    def generate(context, builder, signature, arguments):
        number, byte = ir.IntType(64), ir.IntType(8).as_pointer()
        first, length = arguments

        def line(n, carried):
            prefetch(builder, builder.inttoptr(builder.add(first, builder.mul(n, number(64))), byte))
            return []

        lines = builder.lshr(builder.add(length, number(63)), number(6))
        loop(builder, number(0), lines, [], line)
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


@intrinsic
def add_row(typing, out, stored, values, length):
    """out[n] = stored[n] + values[n] for n < length, at least 1, in float32 and rounded once.

    Addresses of what is stored and of float32 values; of `stored`, a value, only the type counts. Numba's
    own loop goes value by value: it takes the rows for ones that may overlap.
    """
    signature = types.void(types.intp, stored, types.intp, types.intp)

    def generate(context, builder, signature, arguments):
        out, _, values, length = arguments
        out, read, write = stored_at(context, builder, out, stored)
        values = builder.inttoptr(values, ir.FloatType().as_pointer())

        def add(start, lanes, vectors):
            vector = ir.VectorType(ir.FloatType(), lanes)
            for m in range(vectors):
                place = builder.add(start, length.type(lanes * m))
                here = builder.gep(out, [place])
                made = load(builder, builder.gep(values, [place]), vector)
                write(builder.fadd(read(here, lanes), made), here)

        in_vectors(builder, length, add)
        return context.get_dummy_value()

    return signature, generate


@njit(inline="always")
def _add_rows(weight, start, stop, first, block, left, right, ranks, sets, factors):
    """weight[start:stop] += all terms, of which `left` has the factors for these rows."""
    columns, size = weight.shape[1], weight.itemsize
    depth, room = right.shape[1], left.shape[1]
    paired = ranks.sum()
    # Rounded once without a block: a product is summed before it is added, and a set in registers, from a
    # weight on that is shorter than they are, or in one step.
    one_product = len(ranks) == 0 and len(sets) == 0
    one_set = depth == 0 and len(sets) == 1 and (size < 4 or sets[0, 1] == 1)
    # The right factors of a block's columns stay in the cache for all of its rows.
    for column in range(0, columns, BLOCK_COLUMNS):
        width = min(BLOCK_COLUMNS, columns - column)
        for row in range(start, stop, BLOCK_ROWS):
            height = min(BLOCK_ROWS, stop - row)
            base = weight.ctypes.data + (row * columns + column) * size
            # How many columns need no block: all of a set's, and those of whole tiles of a product.
            done = 0
            if one_set:
                done = width
            elif one_product and height == BLOCK_ROWS:
                done = width - width % COLUMNS
            if len(ranks) == 0 and done < width:
                block[:] = 0
            if depth:
                panel = left.ctypes.data + (row - start) * room * 4
                # What is made beyond the height and the width is not used.
                for n in range(0, width, COLUMNS):
                    strip = right.ctypes.data + (column + n) * depth * 4
                    out = block.ctypes.data + n * 4
                    if not one_product:
                        for m in range(height):
                            fetch(base + (m * columns + n) * size, min(COLUMNS, width - n) * size)
                    if len(ranks):
                        for m in range(0, height, ROWS):
                            here = out + m * BLOCK_COLUMNS * 4
                            outer(here, panel + m * 4, strip, ranks.ctypes.data, len(ranks))
                    if paired < depth:
                        own, here = panel + paired * BLOCK_ROWS * 4, strip + paired * COLUMNS * 4
                        rest = depth - paired
                        if n < done:
                            product(base + n * size, weight[row, column], columns, own, here, rest)
                        else:
                            product(out, block[0, 0], BLOCK_COLUMNS, own, here, rest)
            else:
                for m in range(height):
                    fetch(base + m * columns * size, width * size)
            for s in range(len(sets)):
                offset, count = sets[s, 0], sets[s, 1]
                i, k, j = sets[s, 2], sets[s, 3], sets[s, 4]
                w1, w2 = sets[s, 5], sets[s, 6]
                for m in range(height):
                    a, b = divmod(first + row + m + offset, k)
                    for c in range(column // j, (column + width - 1) // j + 1):
                        low, high = max(column, c * j), min(column + width, (c + 1) * j)
                        scalars = factors.ctypes.data + (w1 + (a * i + c) * count) * 4
                        rows = factors.ctypes.data + (w2 + b * j + low - c * j) * 4
                        if one_set:
                            to = base + (m * columns + low - column) * size
                            combine(to, weight[row, column], high - low, scalars, rows, k * j, count)
                        else:
                            to = block.ctypes.data + (m * BLOCK_COLUMNS + low - column) * 4
                            combine(to, block[0, 0], high - low, scalars, rows, k * j, count)
            for m in range(height if done < width else 0):
                made = block.ctypes.data + (m * BLOCK_COLUMNS + done) * 4
                add_row(base + (m * columns + done) * size, weight[row, column], made, width - done)


@named
def add_terms(weight, first, lead, threads, shared, block, left, pairs, scales, right, ranks, sets, factors):
    """weight += all terms, of which row `first` is that of weight[0]; all threads of `shared` do a part.

    First they lay out the right factors, in `right` (strips, T, COLUMNS). False where others are not done
    with that, or with `lead`, which one thread has, not with the weight: to be called again.

    block (BLOCK_ROWS, BLOCK_COLUMNS) and left (panels, T + LANES, BLOCK_ROWS) are a thread's own room to
    work in: the left factors are laid out there, each times its scale. ranks (terms, 2) are as for `outer`;
    what of the T is beyond these ranks is for `product`.
    A row of `sets` (sets, FIELDS) is N layers of one Kronecker factorisation: what is added to a row of
    the weight, N, i, k, j, and where in `factors` w1 (l, i, N) and w2 (N, k, j) start.
    """
    height, columns, depth, room = weight.shape[0], weight.shape[1], right.shape[1], left.shape[1]
    while True:
        n = tell(shared, TAKEN, 1)
        if n >= len(pairs):
            break
        address, stored, rank, place = pairs[n, 2], pairs[n, 3], pairs[n, 4], pairs[n, 5]
        for row in range(rank):
            out = right.ctypes.data + (place + row) * COLUMNS * 4
            here = address + row * columns * size_of(stored)
            lay_strips(out, depth * COLUMNS, here, stored, columns)
        tell(shared, LAID, 1)
    if not reached(shared, LAID, len(pairs)):
        return False
    while True:
        start, stop = claim(shared, height, threads, len(left) * BLOCK_ROWS)
        if start == stop:
            return not lead or reached(shared, DONE, height)
        for n in range(len(pairs)):
            address, stored, rank, place = pairs[n, 0], pairs[n, 1], pairs[n, 4], pairs[n, 5]
            for row in range(start, stop, BLOCK_ROWS):
                out = left.ctypes.data + ((row - start) // BLOCK_ROWS * room + place) * BLOCK_ROWS * 4
                here = address + (first + row) * rank * size_of(stored)
                lay_panel(out, here, stored, stop - row - 1, rank, scales[n])
        _add_rows(weight, start, stop, first, block, left, right, ranks, sets, factors)
        tell(shared, DONE, stop - start)


def kernel(stored: str):
    """`add_terms` for weights stored as "float32", or as the bits in "uint16" and "int16", as CONVERTED has.

    Raises RuntimeError where numba is told not to compile.
    """
    single, table = types.float32, array(types.int64, 2)
    signature = types.boolean(
        array(getattr(types, stored), 2),
        types.intp,
        types.boolean,
        types.intp,
        array(types.int64, 1),
        array(single, 2),
        array(single, 3),
        table,
        array(single, 1),
        array(single, 3),
        *[table] * 2,
        array(single, 1),
    )
    return compiled(signature, add_terms)
