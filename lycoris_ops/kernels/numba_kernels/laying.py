# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false
"""Factors laid out as products read them: right ones in strips of columns, left ones in panels of rows.

A factor comes as it is stored, float32 (0), float16 (1) or bfloat16 (2), a row after the other.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .job import COUNT, DEPTH, LAID, PAIRS, PLACED, RIGHT, ROW, SCALES, TAKEN, WIDTH
from .sharing import reached, tell
from .vectors import (
    BLOCK_ROWS,
    COLUMNS,
    HALF,
    LANES,
    VECTORS,
    from_bits,
    from_half,
    loop,
    singles,
    some,
    splat,
    store,
    table,
    transposed,
)

NUMBER, SINGLE, SHORT = ir.IntType(64), ir.FloatType(), ir.IntType(16)


def _same(builder, value):
    return value


STORED = (
    (SINGLE, _same),
    # Without the instruction no factor comes as float16, and the code for one must not be there.
    (SHORT, from_half if HALF else from_bits),
    (SHORT, from_bits),
)
"""How the values of a factor are read, by how it is stored."""


@njit(inline="always")
def size_of(stored):
    """The bytes of a value."""
    return 4 if stored == 0 else 2


def _read(builder, pointers, places, stored, rest):
    """LANES values as float32 at so many places from each pointer; only the first `rest`, then zeros."""
    end = builder.append_basic_block("read")
    found = []

    def one(kind, load):
        single, convert = STORED[kind]
        values = []
        for pointer, place in zip(pointers, places, strict=True):
            here = builder.gep(builder.bitcast(pointer, single.as_pointer()), [place])
            values.append(convert(builder, load(here, ir.VectorType(single, LANES))))
        found.append((builder.block, values))
        builder.branch(end)

    def whole(here, vector):
        return builder.load(builder.bitcast(here, vector.as_pointer()), align=2)

    def part(here, vector):
        return some(builder, here, vector, rest)

    other = builder.append_basic_block("part")
    for load, block in ((whole, None), (part, other)):
        if block is None:
            first = builder.append_basic_block("whole")
            builder.cbranch(builder.icmp_signed(">=", rest, NUMBER(LANES)), first, other)
            block = first
        builder.position_at_end(block)
        blocks = [builder.append_basic_block("stored") for _ in STORED]
        switch = builder.switch(stored, blocks[0])
        for kind, target in enumerate(blocks):
            if kind:
                switch.add_case(NUMBER(kind), target)
            builder.position_at_end(target)
            one(kind, load)
    builder.position_at_end(end)
    vectors = []
    for n in range(len(pointers)):
        phi = builder.phi(ir.VectorType(SINGLE, LANES))
        for block, values in found:
            phi.add_incoming(values[n], block)
        vectors.append(phi)
    return vectors


@intrinsic
def lay_panel(typing, out, address, stored, last, rank, scale):
    """out (rank, BLOCK_ROWS) = scale * the rows (BLOCK_ROWS, rank) at an address, transposed.

    Of rows beyond `last` that one is taken again. What follows `out` is written to as well, less than
    LANES * BLOCK_ROWS values.
    """

    def generate(context, builder, signature, arguments):
        out, address, stored, last, rank, scale = arguments
        out = builder.inttoptr(out, SINGLE.as_pointer())
        first = builder.inttoptr(address, SHORT.as_pointer())
        scales = splat(builder, scale, ir.VectorType(SINGLE, LANES))
        starts = []
        for n in range(BLOCK_ROWS):
            row = builder.select(builder.icmp_signed("<", last, NUMBER(n)), last, NUMBER(n))
            starts.append(builder.mul(row, rank))

        def lanes(n, carried):
            start = builder.mul(n, NUMBER(LANES))
            places = [builder.add(one, start) for one in starts]
            rows = _read(builder, [first] * BLOCK_ROWS, places, stored, builder.sub(rank, start))
            scaled = [builder.fmul(row, scales) for row in rows]
            # Ascending: what is too much of a vector is where the next one goes.
            for m, value in enumerate(transposed(builder, scaled + scaled[:1] * (LANES - BLOCK_ROWS))):
                place = builder.mul(builder.add(start, NUMBER(m)), NUMBER(BLOCK_ROWS))
                store(builder, value, builder.gep(out, [place]))
            return []

        loop(builder, NUMBER(0), _pieces(builder, rank, LANES), [], lanes)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5, types.float32), generate


@intrinsic
def lay_strips(typing, out, apart, address, stored, length):
    """out[s * apart + c] = the values at an address, at s * COLUMNS + c: `length` of them, then zeros."""

    def generate(context, builder, signature, arguments):
        out, apart, address, stored, length = arguments
        out = builder.inttoptr(out, SINGLE.as_pointer())
        first = builder.inttoptr(address, SHORT.as_pointer())

        def strip(n, carried):
            for m in range(VECTORS):
                place = builder.add(builder.mul(n, NUMBER(COLUMNS)), NUMBER(LANES * m))
                (value,) = _read(builder, [first], [place], stored, builder.sub(length, place))
                here = builder.add(builder.mul(n, apart), NUMBER(LANES * m))
                store(builder, value, builder.gep(out, [here]))
            return []

        loop(builder, NUMBER(0), _pieces(builder, length, COLUMNS), [], strip)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


def _pieces(builder, length, size):
    """How many of a size a length of at least 1 is, the last one not whole."""
    return builder.udiv(builder.add(length, NUMBER(size - 1)), NUMBER(size))


@njit
def lay_right(job):
    """Lay out the right factors as (strips, T, COLUMNS), with other threads; whether all are."""
    pairs, columns, depth = table(job[PAIRS], job[COUNT], PLACED), job[WIDTH], job[DEPTH]
    while True:
        n = tell(job, TAKEN, 1)
        if n >= len(pairs):
            return reached(job, LAID, len(pairs))
        address, stored, rank, place = pairs[n, 2], pairs[n, 3], pairs[n, 4], pairs[n, 5]
        for row in range(rank):
            out = job[RIGHT] + (place + row) * COLUMNS * 4
            here = address + row * columns * size_of(stored)
            lay_strips(out, depth * COLUMNS, here, stored, columns)
        tell(job, LAID, 1)


@njit(inline="always")
def panel_size(job):
    """Bytes of a panel of left factors: (T + LANES, BLOCK_ROWS), of which the first T are used."""
    return (job[DEPTH] + LANES) * BLOCK_ROWS * 4


@njit
def lay_left(job, left, start, height):
    """Lay out the left factors for so many rows of the weight from one on, in panels."""
    pairs, scales = table(job[PAIRS], job[COUNT], PLACED), singles(job[SCALES], job[COUNT])
    first = job[ROW] + start
    for n in range(len(pairs)):
        address, stored, rank, place = pairs[n, 0], pairs[n, 1], pairs[n, 4], pairs[n, 5]
        for row in range(0, height, BLOCK_ROWS):
            out = left + row // BLOCK_ROWS * panel_size(job) + place * BLOCK_ROWS * 4
            here = address + (first + row) * rank * size_of(stored)
            lay_panel(out, here, stored, height - row - 1, rank, scales[n])
