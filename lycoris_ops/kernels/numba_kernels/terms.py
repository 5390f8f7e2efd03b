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

Compiling takes 1.5 seconds for the first dtype of weights and 0.6 seconds for each other; from disk it
takes 0.1 seconds, beside the import of numba.
"""

from __future__ import annotations

import contextlib
import hashlib

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

REGISTERS: dict[str, tuple[int, int, int]] = {
    # instructions: rows, vectors of a row, and values of a vector; three times rows * vectors are held.
    "avx512f": (4, 2, 16),
    "": (2, 2, 8),
}
# Numba can be told to compile for less than what is here.
_FEATURES = {} if config.CPU_NAME or config.CPU_FEATURES else llvm.get_host_cpu_features()

ROWS, VECTORS, LANES = next(size for name, size in REGISTERS.items() if not name or _FEATURES.get(name))
COLUMNS = VECTORS * LANES
"""Columns that `outer` makes at once: the right factors stand in strips of as many."""

SPAN = 4 * LANES
"""Columns that `combine` makes at once."""

BLOCK_ROWS, BLOCK_COLUMNS = 3 * ROWS, 512
"""The block of the weight, up to 24 KB in float32. `product` makes its rows at once."""

HALF = bool(_FEATURES.get("f16c")) or not llvm.get_process_triple().startswith(("x86", "i686", "amd64"))
"""Whether the processor converts float16: without, LLVM calls a function that nobody provides."""

FIELDS = 7
"""Integers of a Kronecker set, as `add_terms` unpacks them."""

PLACED = 4
"""Integers of a factor to lay out: its address, how it is stored, its rank, and the first of its places.
It is stored as float32 (0), float16 (1) or bfloat16 (2), a row after the other."""


def _loop(builder, start, stop, carried, body):
    """`carried` after `body(n, carried)` for n from start to stop - 1, which is at least once."""
    before, head = builder.block, builder.append_basic_block("loop")
    builder.branch(head)
    builder.position_at_end(head)
    number = builder.phi(start.type)
    inside = [builder.phi(value.type) for value in carried]
    after = body(number, inside)
    following = builder.add(number, start.type(1))
    for phi, first, last in zip([number, *inside], [start, *carried], [following, *after], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, builder.block)
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", following, stop), head, done)
    builder.position_at_end(done)
    return after


def _fma(builder, lanes):
    """The vector of float32 that is so long, and the function a * b + c of three of them."""
    vector = ir.VectorType(ir.FloatType(), lanes)
    kind = ir.FunctionType(vector, [vector] * 3)
    return vector, cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{lanes}f32")


def _load(builder, pointer, vector=None):
    if vector is None:
        return builder.load(pointer)
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4)


def _store(builder, value, pointer):
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=4)


def _splat(builder, value, vector):
    one = builder.insert_element(vector(ir.Undefined), value, ir.IntType(32)(0))
    lanes = ir.VectorType(ir.IntType(32), vector.count)
    return builder.shuffle_vector(one, vector(ir.Undefined), lanes([0] * vector.count))


def _ranks(builder, left, right, rows, start, stop, sums):
    """sums[rows, COLUMNS], as vectors, plus left (T, BLOCK_ROWS) transposed @ right (T, COLUMNS).

    Of the T those from start to stop - 1 are meant, at least one, and of left the first rows.
    """
    number = start.type
    vector, fma = _fma(builder, LANES)

    def step(rank, sums):
        strip = builder.gep(right, [builder.mul(rank, number(COLUMNS))])
        panel = builder.gep(left, [builder.mul(rank, number(BLOCK_ROWS))])
        row = [_load(builder, builder.gep(strip, [number(LANES * n)]), vector) for n in range(VECTORS)]
        after = []
        for n in range(rows):
            value = _splat(builder, _load(builder, builder.gep(panel, [number(n)])), vector)
            after += [builder.call(fma, [value, row[m], sums[n * VECTORS + m]]) for m in range(VECTORS)]
        return after

    return _loop(builder, start, stop, sums, step)


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
        vector, fma = _fma(builder, LANES)
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
            return [last, *[builder.call(fma, three) for three in zip(one, two, sums, strict=True)]]

        zeros = [vector([0.0] * LANES)] * (ROWS * VECTORS)
        _, *sums = _loop(builder, number(0), count, [number(0), *zeros], term)
        for value, place in zip(sums, _tile(builder, out, number(BLOCK_COLUMNS), ROWS), strict=True):
            _store(builder, value, place)
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
        out, read, write = _stored(context, builder, out, stored)
        vector, _ = _fma(builder, LANES)
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
        number, byte, flag = ir.IntType(64), ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        first, length = arguments

        def line(n, carried):
            place = builder.inttoptr(builder.add(first, builder.mul(n, number(64))), byte)
            builder.call(prefetch, [place, flag(1), flag(3), flag(1)])
            return []

        lines = builder.lshr(builder.add(length, number(63)), number(6))
        _loop(builder, number(0), lines, [], line)
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
        out, read, write = _stored(context, builder, out, stored)

        def add(start, lanes, vectors):
            vector, fma = _fma(builder, lanes)
            places = [builder.add(start, number(lanes * m)) for m in range(vectors)]

            def step(n, sums):
                row = builder.gep(rows, [builder.add(start, builder.mul(n, stride))])
                value = _splat(builder, _load(builder, builder.gep(scalars, [n])), vector)
                parts = [
                    _load(builder, builder.gep(row, [number(lanes * m)]), vector) for m in range(vectors)
                ]
                return [builder.call(fma, [value, *two]) for two in zip(parts, sums, strict=True)]

            before = [read(builder.gep(out, [place]), lanes) for place in places]
            for value, place in zip(_loop(builder, number(0), count, before, step), places, strict=True):
                write(value, builder.gep(out, [place]))

        _in_vectors(builder, length, add)
        return context.get_dummy_value()

    return signature, generate


def _stored(context, builder, address, stored):
    """A pointer to what is stored at an address, and how vectors of float32 are read there and written."""
    single, (widen, narrow) = context.get_value_type(stored), CONVERTED[stored]
    size = context.get_abi_sizeof(single)

    def read(pointer, lanes):
        here = builder.bitcast(pointer, ir.VectorType(single, lanes).as_pointer())
        return widen(builder, builder.load(here, align=size))

    def write(value, pointer):
        short = narrow(builder, value)
        builder.store(short, builder.bitcast(pointer, short.type.as_pointer()), align=size)

    return builder.inttoptr(address, single.as_pointer()), read, write


def _in_vectors(builder, length, body):
    """`body(start, lanes, vectors)` for pieces of a length of at least 1 that are together all of it."""
    number = length.type

    def many(n, carried):
        body(builder.mul(n, number(SPAN)), LANES, SPAN // LANES)
        return []

    whole = builder.lshr(length, number(SPAN.bit_length() - 1))
    with builder.if_then(builder.icmp_signed(">", whole, number(0))):
        _loop(builder, number(0), whole, [], many)
    lanes = SPAN // 2
    while lanes:
        with builder.if_then(builder.icmp_signed("!=", builder.and_(length, number(lanes)), number(0))):
            # The bits of the length above this one are done.
            body(builder.and_(length, number(-2 * lanes)), min(lanes, LANES), max(1, lanes // LANES))
        lanes //= 2


def _from_bits(builder, value):
    wide = _like(value.type, ir.IntType(32))
    shifted = builder.shl(builder.zext(value, wide), _all(wide, 16))
    return builder.bitcast(shifted, _like(value.type, ir.FloatType()))


def _from_half(builder, value):
    half = builder.bitcast(value, _like(value.type, ir.HalfType()))
    return builder.fpext(half, _like(value.type, ir.FloatType()))


def _like(kind, single):
    """A type of single values, or of vectors of them where `kind` is one of vectors."""
    return ir.VectorType(single, kind.count) if isinstance(kind, ir.VectorType) else single


def _all(kind, value):
    return kind([value] * kind.count) if isinstance(kind, ir.VectorType) else kind(value)


def _reader(stored, convert):
    """A function of an address and a number of values before it, for values that are stored like that."""

    @intrinsic
    def read(typing, address, index):
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], stored.as_pointer())
            return convert(builder, builder.load(builder.gep(pointer, [arguments[1]])))

        return types.float32(types.intp, types.intp), generate

    return read


_read_single = _reader(ir.FloatType(), lambda builder, value: value)
_read_bfloat = _reader(ir.IntType(16), _from_bits)
# Without the instruction no factor comes as float16, and the code for one must not be there.
_read_half = _reader(ir.IntType(16), _from_half) if HALF else _read_bfloat


@njit(inline="always")
def _lay_row(out, address, stored, index, scale):
    """out = scale * the values from `index` on, of a factor at an address."""
    if stored == 0:
        for n in range(len(out)):
            out[n] = _read_single(address, index + n) * scale
    elif stored == 1:
        for n in range(len(out)):
            out[n] = _read_half(address, index + n) * scale
    else:
        for n in range(len(out)):
            out[n] = _read_bfloat(address, index + n) * scale


def lay_strips(right, table, columns):
    """right (strips, T, COLUMNS) = the factors (r, columns) of a table, one below the other."""
    for n in range(len(table)):
        address, stored, rank, place = table[n]
        for row in range(rank):
            for strip in range(len(right)):
                start = strip * COLUMNS
                out = right[strip, place + row, : min(COLUMNS, columns - start)]
                _lay_row(out, address, stored, row * columns + start, np.float32(1.0))


def _to_bits(builder, value):
    # By integers: the instruction for it takes the smallest numbers for zero.
    wide = _like(value.type, ir.IntType(32))
    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, _all(wide, 16)), _all(wide, 1))
    rounded = builder.add(bits, builder.add(odd, _all(wide, 0x7FFF)))
    # A NaN stays one: rounding could carry it over to zero.
    nan = builder.fcmp_unordered("uno", value, value)
    kept = builder.select(nan, builder.or_(bits, _all(wide, 0x400000)), rounded)
    return builder.trunc(builder.lshr(kept, _all(wide, 16)), _like(value.type, ir.IntType(16)))


def _to_half(builder, value):
    half = builder.fptrunc(value, _like(value.type, ir.HalfType()))
    return builder.bitcast(half, _like(value.type, ir.IntType(16)))


def _same(builder, value):
    return value


CONVERTED = {
    types.float32: (_same, _same),
    types.uint16: (_from_bits, _to_bits),
    types.int16: (_from_half, _to_half),
}
"""Of what weights are stored as, the bits of bfloat16 as uint16 and of float16 as int16: to float32 and
back, rounded to nearest, ties to even."""


@intrinsic
def add_row(typing, out, stored, values, length):
    """out[n] = stored[n] + values[n] for n < length, at least 1, in float32 and rounded once.

    Addresses of what is stored and of float32 values; of `stored`, a value, only the type counts. Numba's
    own loop goes value by value: it takes the rows for ones that may overlap.
    """
    signature = types.void(types.intp, stored, types.intp, types.intp)

    def generate(context, builder, signature, arguments):
        out, _, values, length = arguments
        out, read, write = _stored(context, builder, out, stored)
        values = builder.inttoptr(values, ir.FloatType().as_pointer())

        def add(start, lanes, vectors):
            vector = ir.VectorType(ir.FloatType(), lanes)
            for m in range(vectors):
                place = builder.add(start, length.type(lanes * m))
                here = builder.gep(out, [place])
                made = _load(builder, builder.gep(values, [place]), vector)
                write(builder.fadd(read(here, lanes), made), here)

        _in_vectors(builder, length, add)
        return context.get_dummy_value()

    return signature, generate


def add_terms(weight, start, stop, first, block, left, lefts, scales, right, ranks, sets, factors):
    """weight[start:stop] += all terms, of which row `first` is that of weight[0].

    `start` is a multiple of BLOCK_ROWS. block (BLOCK_ROWS, BLOCK_COLUMNS) and left (panels, T, BLOCK_ROWS)
    are room to work in: the rows of left are the weight's, and those that are needed are laid out here, of
    the factors of a table, each times its scale. right (strips, T, COLUMNS) and ranks (terms, 2) are as for
    `outer`; what of the T is beyond these ranks is for `product`.
    A row of `sets` (sets, FIELDS) is N layers of one Kronecker factorisation: what is added to a row of
    the weight, N, i, k, j, and where in `factors` w1 (l, i, N) and w2 (N, k, j) start.
    """
    columns, depth, size = weight.shape[1], left.shape[1], weight.itemsize
    paired = ranks.sum()
    # Rounded once without a block: a product is summed before it is added, and a set in registers, from a
    # weight on that is shorter than they are, or in one step.
    one_product = len(ranks) == 0 and len(sets) == 0
    one_set = depth == 0 and len(sets) == 1 and (size < 4 or sets[0, 1] == 1)
    for n in range(len(lefts)):
        address, stored, rank, place = lefts[n]
        for row in range(start, stop):
            panel, m = divmod(row, BLOCK_ROWS)
            out = left[panel, place : place + rank, m]
            _lay_row(out, address, stored, (first + row) * rank, scales[n])
    if stop % BLOCK_ROWS:
        left[stop // BLOCK_ROWS, :, stop % BLOCK_ROWS :] = 0
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
                panel = left.ctypes.data + row * depth * 4
                # What is made beyond the height and the width is not used.
                for n in range(0, width, COLUMNS):
                    strip = right.ctypes.data + (column + n) * depth * 4
                    out = block.ctypes.data + n * 4
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


# Numba imports the module that a kernel on disk came from, by name: where the package has another name,
# as under the host, the kernel is another one too.
for _function in (add_terms, lay_strips):
    _function.__qualname__ += f"_{hashlib.sha256(__name__.encode()).hexdigest()[:8]}"


def _matrix(stored, dimensions):
    return types.Array(stored, dimensions, "C")


def compiled(stored: str):
    """`add_terms` for weights stored as "float32", or as the bits in "uint16" and "int16" as in `widen`.

    It is kept on disk beside this file, or in the user's cache where this folder is read-only.
    Raises RuntimeError where numba is told not to compile.
    """
    single, table = types.float32, _matrix(types.int64, 2)
    signature = types.void(
        _matrix(getattr(types, stored), 2),
        *[types.intp] * 3,
        _matrix(single, 2),
        _matrix(single, 3),
        table,
        _matrix(single, 1),
        _matrix(single, 3),
        *[table] * 2,
        _matrix(single, 1),
    )
    return _on_disk(signature, add_terms)


def compiled_strips():
    """`lay_strips`, likewise."""
    return _on_disk(types.void(_matrix(types.float32, 3), _matrix(types.int64, 2), types.intp), lay_strips)


def _on_disk(signature, function):
    if config.DISABLE_JIT:
        raise RuntimeError("numba's compiler is switched off (NUMBA_DISABLE_JIT)")
    with contextlib.suppress(Exception):
        # Fails without a folder that can be written, on a full disk, and on a broken file there.
        return njit(signature, nogil=True, cache=True)(function)
    return njit(signature, nogil=True)(function)
