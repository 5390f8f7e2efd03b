# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false
"""Factors laid out as products read them: right ones in strips of columns, left ones in panels of rows.

A factor comes as it is stored, a row after the other.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .job import (
    BFLOAT16,
    COUNT,
    DEPTH,
    FLOAT16,
    FLOAT32,
    LAID,
    LEVELS,
    PAIRS,
    PLACED,
    RIGHT,
    ROW,
    SCALES,
    TAKEN,
    WIDTH,
)
from .sharing import reached, tell
from .vectors import (
    BLOCK_ROWS,
    COLUMNS,
    HALF,
    LANES,
    VECTORS,
    from_bits,
    from_half,
    larger,
    load,
    loop,
    same,
    singles,
    sizes,
    some,
    splat,
    store,
    table,
    transposed,
)

NUMBER, WORD, SHORT, SINGLE = ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.FloatType()


READ = {
    FLOAT32: (SINGLE, same),
    # Without the instruction no factor comes as float16, and the code for one must not be there.
    FLOAT16: (SHORT, from_half if HALF else from_bits),
    BFLOAT16: (SHORT, from_bits),
}
"""How the values of a factor are read, by how it is stored."""


@njit(inline="always")
def size_of(stored):
    """The bytes of a value."""
    return 4 if stored == FLOAT32 else 2


def _read(builder, pointers, places, stored, rest):
    """LANES values as float32 at so many places from each pointer; only the first `rest`, then zeros."""
    end = builder.append_basic_block("read")
    found = []

    def one(kind, take):
        single, convert = READ[kind]
        values = []
        for pointer, place in zip(pointers, places, strict=True):
            here = builder.gep(builder.bitcast(pointer, single.as_pointer()), [place])
            values.append(convert(builder, take(here, ir.VectorType(single, LANES))))
        found.append((builder.block, values))
        builder.branch(end)

    def whole(here, vector):
        return builder.load(builder.bitcast(here, vector.as_pointer()), align=2)

    def part(here, vector):
        return some(builder, here, vector, rest)

    all_there, some_there = (builder.append_basic_block(name) for name in ("whole", "part"))
    builder.cbranch(builder.icmp_signed(">=", rest, NUMBER(LANES)), all_there, some_there)
    for take, block in ((whole, all_there), (part, some_there)):
        builder.position_at_end(block)
        blocks = [builder.append_basic_block("stored") for _ in READ]
        switch = builder.switch(stored, blocks[0])
        for kind, target in zip(READ, blocks, strict=True):
            switch.add_case(NUMBER(kind), target)
            builder.position_at_end(target)
            one(kind, take)
    builder.position_at_end(end)
    vectors = []
    for n in range(len(pointers)):
        phi = builder.phi(ir.VectorType(SINGLE, LANES))
        for block, values in found:
            phi.add_incoming(values[n], block)
        vectors.append(phi)
    return vectors


@intrinsic
def lay_panel(typing, out, address, stored, last, rank, levels):
    """out (rank, BLOCK_ROWS) = the rows (BLOCK_ROWS, rank) at an address times their levels, transposed.

    Of rows beyond `last` that one is taken again. What follows `out` is written to as well, less than
    LANES * BLOCK_ROWS values, and what follows the levels is read, less than LANES.
    """

    def generate(context, builder, signature, arguments):
        out, address, stored, last, rank, levels = arguments
        out = builder.inttoptr(out, SINGLE.as_pointer())
        first = builder.inttoptr(address, SHORT.as_pointer())
        levels = builder.inttoptr(levels, SINGLE.as_pointer())
        starts = []
        for n in range(BLOCK_ROWS):
            row = builder.select(builder.icmp_signed("<", last, NUMBER(n)), last, NUMBER(n))
            starts.append(builder.mul(row, rank))

        def lanes(n, carried):
            start = builder.mul(n, NUMBER(LANES))
            places = [builder.add(one, start) for one in starts]
            rows = _read(builder, [first] * BLOCK_ROWS, places, stored, builder.sub(rank, start))
            here = load(builder, builder.gep(levels, [start]), ir.VectorType(SINGLE, LANES))
            scaled = [builder.fmul(row, here) for row in rows]
            # Ascending: what is too much of a vector is where the next one goes.
            for m, value in enumerate(transposed(builder, scaled + scaled[:1] * (LANES - BLOCK_ROWS))):
                place = builder.mul(builder.add(start, NUMBER(m)), NUMBER(BLOCK_ROWS))
                store(builder, value, builder.gep(out, [place]))
            return []

        loop(builder, NUMBER(0), _pieces(builder, rank, LANES), [], lanes)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@intrinsic
def lay_strips(typing, out, apart, address, stored, length, factor):
    """out[s * apart + c] = factor * the values at an address, at s * COLUMNS + c: `length`, then zeros."""

    def generate(context, builder, signature, arguments):
        out, apart, address, stored, length, factor = arguments
        out = builder.inttoptr(out, SINGLE.as_pointer())
        factors = splat(builder, factor, ir.VectorType(SINGLE, LANES))
        first = builder.inttoptr(address, SHORT.as_pointer())

        def strip(n, carried):
            for m in range(VECTORS):
                place = builder.add(builder.mul(n, NUMBER(COLUMNS)), NUMBER(LANES * m))
                (value,) = _read(builder, [first], [place], stored, builder.sub(length, place))
                here = builder.add(builder.mul(n, apart), NUMBER(LANES * m))
                store(builder, builder.fmul(value, factors), builder.gep(out, [here]))
            return []

        loop(builder, NUMBER(0), _pieces(builder, length, COLUMNS), [], strip)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5, types.float32), generate


@intrinsic
def level(typing, address, stored, length):
    """A power of two between the mean and the largest of the sizes of the values at an address.

    It is 1 where these are zeros, below the smallest normal number, or not finite.
    """

    def generate(context, builder, signature, arguments):
        address, stored, length = arguments
        first = builder.inttoptr(address, SHORT.as_pointer())
        vector, words = ir.VectorType(SINGLE, LANES), ir.VectorType(WORD, LANES)

        def lanes(n, carried):
            largest, total = carried
            start = builder.mul(n, NUMBER(LANES))
            (value,) = _read(builder, [first], [start], stored, builder.sub(length, start))
            bits = sizes(builder, value)
            return [larger(builder, bits, largest), builder.fadd(total, builder.bitcast(bits, vector))]

        begin = [words([0] * LANES), vector([0.0] * LANES)]
        largest, total = loop(builder, NUMBER(0), _pieces(builder, length, LANES), begin, lanes)
        high, mean = WORD(0), SINGLE(0.0)
        for n in range(LANES):
            high = larger(builder, builder.extract_element(largest, WORD(n)), high)
            mean = builder.fadd(mean, builder.extract_element(total, WORD(n)))
        mean = builder.fdiv(mean, builder.sitofp(length, SINGLE))
        above, below = (builder.lshr(one, WORD(23)) for one in (high, builder.bitcast(mean, WORD)))
        middle = builder.lshr(builder.add(above, below), WORD(1))
        # The largest exponent is that of infinity, and the inverse of the one before it is no normal number.
        infinite = (builder.icmp_unsigned(">", one, WORD(253)) for one in (above, below))
        lost = builder.or_(builder.or_(*infinite), builder.icmp_signed("==", below, WORD(0)))
        exponent = builder.select(lost, WORD(127), middle)
        return builder.bitcast(builder.shl(exponent, WORD(23)), SINGLE)

    return types.float32(*[types.intp] * 3), generate


def _pieces(builder, length, size):
    """How many of a size a length of at least 1 is, the last one not whole."""
    return builder.udiv(builder.add(length, NUMBER(size - 1)), NUMBER(size))


@njit
def lay_right(job, levelled):
    """Lay out the right factors as (strips, T, COLUMNS), with other threads; whether all are.

    With `levelled` the rows are divided by their `level`, which the left factors take over.
    """
    pairs, scales = table(job[PAIRS], job[COUNT], PLACED), singles(job[SCALES], job[COUNT])
    columns, depth, levels = job[WIDTH], job[DEPTH], singles(job[LEVELS], job[DEPTH])
    while True:
        n = tell(job, TAKEN, 1)
        if n >= len(pairs):
            return reached(job, LAID, len(pairs))
        address, stored, rank, place = pairs[n, 2], pairs[n, 3], pairs[n, 4], pairs[n, 5]
        for row in range(rank):
            out = job[RIGHT] + (place + row) * COLUMNS * 4
            here = address + row * columns * size_of(stored)
            size = level(here, stored, columns) if levelled else np.float32(1)
            levels[place + row] = scales[n] * size
            lay_strips(out, depth * COLUMNS, here, stored, columns, np.float32(1) / size)
        tell(job, LAID, 1)


@njit(inline="always")
def panel_values(depth):
    """What a panel of left factors takes: (T + LANES, BLOCK_ROWS) values, of which the first T are used."""
    return (depth + LANES) * BLOCK_ROWS


@njit(inline="always")
def panel_size(job):
    """Bytes of a panel of left factors."""
    return 4 * panel_values(job[DEPTH])


@njit
def lay_left(job, left, start, height):
    """Lay out the left factors for so many rows of the weight from one on, in panels."""
    pairs, first = table(job[PAIRS], job[COUNT], PLACED), job[ROW] + start
    for n in range(len(pairs)):
        address, stored, rank, place = pairs[n, 0], pairs[n, 1], pairs[n, 4], pairs[n, 5]
        for row in range(0, height, BLOCK_ROWS):
            out = left + row // BLOCK_ROWS * panel_size(job) + place * BLOCK_ROWS * 4
            here = address + (first + row) * rank * size_of(stored)
            lay_panel(out, here, stored, height - row - 1, rank, job[LEVELS] + place * 4)
