# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false
"""The kernel that adds LoRA layers in fixed point: a bfloat16 weight is worth no more.

Of each GROUP ranks, a row of the left factors and a column of the right ones has a scale of its own, its
largest value over LARGEST, and its values are the nearest multiples of that: 13 bits and a sign. Products of
a group are summed exactly as 32-bit integers, the sums of all groups in float32, and the weight is rounded
once. Processors with 16-bit dot products (AVX512-VNNI) do two multiplications where there is one of float32.

Before, the size of a rank is moved from its right side to its left one by a power of two (`level`): layers
that have it on different sides would lose their values to each other's scales. The change has then an error
of 1e-4 of its size, and of 3e-4 where one rank dwarfs all others of its group, beside the 1.6e-3 that
rounding to bfloat16 is to the weight.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .adding import add_row, size_stored, tile
from .compiling import compiled, named
from .job import DEPTH, DONE, FIRST, FIXED, MOST, OWN, RIGHT, ROOM, WEIGHT, WIDTH
from .laying import lay_left, lay_right, panel_size
from .sharing import claim, reached, shared, tell
from .vectors import (
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    COLUMNS,
    FEATURES,
    LANES,
    VECTORS,
    fma,
    larger,
    load,
    loop,
    prefetch,
    sizes,
    splat,
    store,
    stored_at,
)

ABLE = bool(FEATURES.get("avx512vnni")) and LANES == 16
"""Whether the processor has the instruction."""

GROUP = 32
"""Ranks that are summed as integers."""

LARGEST = 8191
"""GROUP times its square is the last one below 2^31."""

SMALLEST = 2.0**-113
"""Where all values of a group are smaller they are taken for zeros: their scale would be no normal number."""

ROUNDED = 1.5 * 2.0**23
"""Added to a number of up to 22 bits, the nearest integer is in the last bits of the sum."""

NUMBER, SINGLE, WORD = ir.IntType(64), ir.FloatType(), ir.IntType(32)


def layout(depth):
    """Values of room: at the beginning of a thread's, beside a panel of left factors, beside a strip."""
    groups = -(-depth // GROUP)
    return BLOCK_ROWS * COLUMNS, (groups + 1) * BLOCK_ROWS, groups * COLUMNS


@intrinsic
def fix(typing, values, width, depth, scales, across):
    """values (depth, width) to fixed point, in their place: pairs (ceil(depth / 2), width).

    Addresses of float32 values, which become 16-bit integers, the second of a pair above, and of scales
    (ceil(depth / GROUP), width). Columns are taken LANES at once from 0 to `across`; what a vector has beyond
    is written to, too.
    """

    def generate(context, builder, signature, arguments):
        values, width, depth, scales, across = arguments
        values, scales = (builder.inttoptr(one, SINGLE.as_pointer()) for one in (values, scales))
        vector, fused = fma(builder, LANES)
        words = ir.VectorType(WORD, LANES)

        def columns(n, carried):
            column = builder.mul(n, NUMBER(LANES))

            def read(row):
                place = builder.add(builder.mul(row, width), column)
                return load(builder, builder.gep(values, [place]), vector)

            def group(g, carried):
                start = builder.mul(g, NUMBER(GROUP))
                stop = builder.add(start, NUMBER(GROUP))
                stop = builder.select(builder.icmp_signed("<", depth, stop), depth, stop)

                def size(row, found):
                    return [larger(builder, sizes(builder, read(row)), found[0])]

                (bits,) = loop(builder, start, stop, [words([0] * LANES)], size)
                largest = builder.bitcast(bits, vector)
                scale = builder.fmul(largest, vector([1.0 / LARGEST] * LANES))
                here = builder.add(builder.mul(g, width), column)
                store(builder, scale, builder.gep(scales, [here]))
                inverse = builder.fdiv(vector([float(LARGEST)] * LANES), largest)
                small = builder.fcmp_ordered("<", largest, vector([SMALLEST] * LANES))
                inverse = builder.select(small, vector([0.0] * LANES), inverse)

                def nearest(row, inverse):
                    sums = builder.call(fused, [read(row), inverse, vector([ROUNDED] * LANES)])
                    return builder.bitcast(sums, words)

                def pair(n, carried):
                    first = builder.mul(n, NUMBER(2))
                    second = builder.add(first, NUMBER(1))
                    there = builder.icmp_signed("<", second, depth)
                    # Of an odd depth, nothing is beside the last one.
                    beside = builder.select(there, inverse, vector([0.0] * LANES))
                    low = builder.and_(nearest(first, inverse), words([0xFFFF] * LANES))
                    high = nearest(builder.select(there, second, first), beside)
                    both = builder.or_(low, builder.shl(high, words([16] * LANES)))
                    place = builder.add(builder.mul(n, width), column)
                    store(builder, builder.bitcast(both, vector), builder.gep(values, [place]))
                    return []

                half = builder.lshr(builder.add(stop, NUMBER(1)), NUMBER(1))
                loop(builder, builder.lshr(start, NUMBER(1)), half, [], pair)
                return []

            groups = builder.udiv(builder.add(depth, NUMBER(GROUP - 1)), NUMBER(GROUP))
            loop(builder, NUMBER(0), groups, [], group)
            return []

        vectors = builder.udiv(builder.add(across, NUMBER(LANES - 1)), NUMBER(LANES))
        loop(builder, NUMBER(0), vectors, [], columns)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


@intrinsic
def product(typing, out, left, left_scales, right, right_scales, depth):
    """out (BLOCK_ROWS, COLUMNS) = left transposed @ right, of what `fix` made of them.

    left (depth, BLOCK_ROWS) and right (depth, COLUMNS); all are addresses but the depth.
    """

    def generate(context, builder, signature, arguments):
        *addresses, depth = arguments
        out, left, left_scales, right, right_scales = (
            builder.inttoptr(one, SINGLE.as_pointer()) for one in addresses
        )
        vector, fused = fma(builder, LANES)
        words = ir.VectorType(WORD, LANES)
        kind = ir.FunctionType(words, [words] * 3)
        dot = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpwssd.512")
        places = tile(builder, out, NUMBER(COLUMNS), BLOCK_ROWS)
        for place in places:
            store(builder, vector([0.0] * LANES), place)
        pairs = builder.lshr(builder.add(depth, NUMBER(1)), NUMBER(1))

        def group(g, carried):
            def pair(n, sums):
                strip = builder.gep(right, [builder.mul(n, NUMBER(COLUMNS))])
                panel = builder.gep(left, [builder.mul(n, NUMBER(BLOCK_ROWS))])
                row = [load(builder, builder.gep(strip, [NUMBER(LANES * m)]), words) for m in range(VECTORS)]
                after = []
                for n in range(BLOCK_ROWS):
                    one = builder.gep(builder.bitcast(panel, WORD.as_pointer()), [NUMBER(n)])
                    value = splat(builder, builder.load(one), words)
                    for m in range(VECTORS):
                        after.append(builder.call(dot, [sums[n * VECTORS + m], value, row[m]]))
                return after

            start = builder.mul(g, NUMBER(GROUP // 2))
            stop = builder.add(start, NUMBER(GROUP // 2))
            stop = builder.select(builder.icmp_signed("<", pairs, stop), pairs, stop)
            zeros = [words([0] * LANES)] * (BLOCK_ROWS * VECTORS)
            sums = loop(builder, start, stop, zeros, pair)
            across = builder.gep(right_scales, [builder.mul(g, NUMBER(COLUMNS))])
            down = builder.gep(left_scales, [builder.mul(g, NUMBER(BLOCK_ROWS))])
            for n in range(BLOCK_ROWS):
                value = splat(builder, builder.load(builder.gep(down, [NUMBER(n)])), vector)
                for m in range(VECTORS):
                    scale = load(builder, builder.gep(across, [NUMBER(LANES * m)]), vector)
                    total, place = builder.sitofp(sums[n * VECTORS + m], vector), places[n * VECTORS + m]
                    both = builder.fmul(scale, value)
                    store(builder, builder.call(fused, [total, both, load(builder, place, vector)]), place)
            return []

        groups = builder.udiv(builder.add(depth, NUMBER(GROUP - 1)), NUMBER(GROUP))
        loop(builder, NUMBER(0), groups, [], group)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@intrinsic
def prepare(typing, out, stored, stride):
    """Start to bring a tile of the weight into the cache."""
    signature = types.void(types.intp, stored, types.intp)

    def generate(context, builder, signature, arguments):
        out, _, stride = arguments
        out, _, _ = stored_at(context, builder, out, stored)
        for place in tile(builder, out, stride, BLOCK_ROWS)[::VECTORS]:
            prefetch(builder, place)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_tile(typing, out, stored, stride, values):
    """out[BLOCK_ROWS, COLUMNS] += values (BLOCK_ROWS, COLUMNS), rounded once."""
    signature = types.void(types.intp, stored, types.intp, types.intp)

    def generate(context, builder, signature, arguments):
        out, _, stride, values = arguments
        out, read, write = stored_at(context, builder, out, stored)
        vector, _ = fma(builder, LANES)
        made = tile(builder, builder.inttoptr(values, SINGLE.as_pointer()), NUMBER(COLUMNS), BLOCK_ROWS)
        for value, place in zip(made, tile(builder, out, stride, BLOCK_ROWS), strict=True):
            write(builder.fadd(read(place, LANES), load(builder, value, vector)), place)
        return context.get_dummy_value()

    return signature, generate


@njit(inline="always")
def _groups(job):
    return (job[DEPTH] + GROUP - 1) // GROUP


@njit
def _add_rows(zero, job, start, stop, made, left, downs, acrosses):
    """Rows `start` to `stop` of the weight += the product, of which `left` has the left factors."""
    columns, depth, size = job[WIDTH], job[DEPTH], size_stored(zero)
    # The right factors of a block's columns stay in the cache for all of its rows.
    for column in range(0, columns, BLOCK_COLUMNS):
        for row in range(start, stop, BLOCK_ROWS):
            height, panel = min(BLOCK_ROWS, stop - row), (row - start) // BLOCK_ROWS
            own, down = left + panel * panel_size(job), downs + panel * (_groups(job) + 1) * BLOCK_ROWS * 4
            for n in range(column, min(columns, column + BLOCK_COLUMNS), COLUMNS):
                base = job[WEIGHT] + (row * columns + n) * size
                whole = height == BLOCK_ROWS and n + COLUMNS <= columns
                if whole:
                    prepare(base, zero, columns)
                product(made, own, down, job[RIGHT] + n * depth * 4, acrosses + n * _groups(job) * 4, depth)
                if whole:
                    add_tile(base, zero, columns, made)
                else:
                    for m in range(height):
                        here = base + m * columns * size
                        add_row(here, zero, made + m * COLUMNS * 4, min(COLUMNS, columns - n))


@njit(inline="always")
def _work(zero, job, number):
    """Rows of the weight += all LoRA layers, until none are left; False while what all read is not laid out.

    Behind the right factors there is room for their scales (strips, groups, COLUMNS). A thread's room begins
    with a tile (BLOCK_ROWS, COLUMNS), then panels of left factors, and for each (groups + 1, BLOCK_ROWS)
    scales.
    """
    strips, depth = (job[WIDTH] + COLUMNS - 1) // COLUMNS, job[DEPTH]
    acrosses = job[RIGHT] + strips * depth * COLUMNS * 4
    if not lay_right(job, True):
        return False
    while True:
        n = tell(job, FIRST, 1)
        if n >= strips:
            break
        across = acrosses + n * _groups(job) * COLUMNS * 4
        fix(job[RIGHT] + n * depth * COLUMNS * 4, COLUMNS, depth, across, COLUMNS)
        tell(job, FIXED, 1)
    if not reached(job, FIXED, strips):
        return False
    made = job[OWN] + number * job[ROOM]
    left = made + BLOCK_ROWS * COLUMNS * 4
    downs = left + job[MOST] * panel_size(job)
    while True:
        start, stop = claim(job)
        if start == stop:
            return True
        lay_left(job, left, start, stop - start)
        for n in range((stop - start + BLOCK_ROWS - 1) // BLOCK_ROWS):
            down = downs + n * (_groups(job) + 1) * BLOCK_ROWS * 4
            fix(left + n * panel_size(job), BLOCK_ROWS, depth, down, BLOCK_ROWS)
        _add_rows(zero, job, start, stop, made, left, downs, acrosses)
        tell(job, DONE, stop - start)


@named
def add_fixed(zero, job, number):
    """Add all LoRA layers to the weight of a job, as one of its threads. `zero` is a value as it has."""
    return shared(_work, zero, job, number)


def kernel(stored: str):
    """`add_fixed` for weights stored as the bits in "uint16", as CONVERTED has; ABLE must hold.

    Raises RuntimeError where numba is told not to compile.
    """
    return compiled(add_fixed, stored)
