# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false
"""The kernel that adds all LoHa, LoKr and LoRA layers of a weight, each value read once and written once.

It works on blocks of the weight that stay in the cache, in float32. A block is first the sum of the
Hadamard terms, sum_n (a1_n @ b1_n) * (a2_n @ b2_n), of which a LoRA layer is one with second factors of
ones; then the Kronecker terms are added to it, and the weight is rounded once when the block is added
to that.

`outer` and `combine` are generated here as LLVM code on vectors. In `outer`, ROWS x COLUMNS values of
the sum and of both products stay in registers over all ranks of all terms: numba's own loops take 2.8
times as long, since LLVM makes them into vectors of half the width and their sums pass through memory.
On one core of an AVX-512 processor it does 120 GFLOP/s, whatever the ranks.

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

BLOCK_ROWS, BLOCK_COLUMNS = 16, 512
"""The block of the weight, 32 KB in float32: multiples of ROWS and COLUMNS."""

HALF = bool(_FEATURES.get("f16c")) or not llvm.get_process_triple().startswith(("x86", "i686", "amd64"))
"""Whether the processor converts float16: without, LLVM calls a function that nobody provides."""

FIELDS = 7
"""Integers of a Kronecker set, as `add_terms` unpacks them."""

PLACED = 4
"""Integers of a factor to lay out: its address, how it is stored, its rank, and the first of its places.
It is stored as float32 (0), float16 (1) or bfloat16 (2), a row after the other; ONES is all ones."""

ONES = 3


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


@intrinsic
def outer(typing, out, out_stride, left, left_stride, right, ranks, count):
    """out[ROWS, COLUMNS] = the sum of `count` >= 1 Hadamard terms; addresses, and strides in values.

    left (ROWS, T) and right (T, COLUMNS) hold both factors of a term, then those of the next;
    ranks (count, 2) are how many of the T each has, at least 1.
    """
    signature = types.void(*[types.intp] * 7)

    def generate(context, builder, signature, arguments):
        number, single = ir.IntType(64), ir.FloatType()
        vector, fma = _fma(builder, LANES)
        out, out_stride, left, left_stride, right, ranks, count = arguments
        out, left, right = (builder.inttoptr(one, single.as_pointer()) for one in (out, left, right))
        ranks = builder.inttoptr(ranks, number.as_pointer())

        def product(start, stop):
            def step(rank, sums):
                strip = builder.gep(right, [builder.mul(rank, number(COLUMNS))])
                row = [
                    _load(builder, builder.gep(strip, [number(LANES * n)]), vector) for n in range(VECTORS)
                ]
                after = []
                for n in range(ROWS):
                    place = builder.add(rank, builder.mul(left_stride, number(n)))
                    value = _splat(builder, _load(builder, builder.gep(left, [place])), vector)
                    for m in range(VECTORS):
                        after.append(builder.call(fma, [value, row[m], sums[n * VECTORS + m]]))
                return after

            return _loop(builder, start, stop, zeros, step)

        def term(n, carried):
            first, sums = carried[0], carried[1:]
            place = builder.mul(n, number(2))
            middle = builder.add(first, builder.load(builder.gep(ranks, [place])))
            last = builder.add(middle, builder.load(builder.gep(ranks, [builder.add(place, number(1))])))
            pairs = zip(product(first, middle), product(middle, last), sums, strict=True)
            return [last, *[builder.call(fma, three) for three in pairs]]

        zeros = [vector([0.0] * LANES)] * (ROWS * VECTORS)
        _, *sums = _loop(builder, number(0), count, [number(0), *zeros], term)
        for n, value in enumerate(sums):
            row, column = divmod(n, VECTORS)
            place = builder.add(builder.mul(out_stride, number(row)), number(LANES * column))
            _store(builder, value, builder.gep(out, [place]))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def combine(typing, out, length, scalars, rows, stride, count):
    """out[q] += sum_n scalars[n] * rows[n * stride + q] for q < length and n < count, both at least 1.

    Addresses, and the stride in values. Vectors first, what is left of the length by shorter ones.
    """
    signature = types.void(*[types.intp] * 6)

    def generate(context, builder, signature, arguments):
        number, single = ir.IntType(64), ir.FloatType()
        out, length, scalars, rows, stride, count = arguments
        out, scalars, rows = (builder.inttoptr(one, single.as_pointer()) for one in (out, scalars, rows))

        def add(start, lanes, vectors):
            vector, fma = _fma(builder, lanes)
            here = [builder.gep(out, [builder.add(start, number(lanes * m))]) for m in range(vectors)]

            def step(n, sums):
                row = builder.gep(rows, [builder.add(start, builder.mul(n, stride))])
                value = _splat(builder, _load(builder, builder.gep(scalars, [n])), vector)
                parts = [
                    _load(builder, builder.gep(row, [number(lanes * m)]), vector) for m in range(vectors)
                ]
                return [builder.call(fma, [value, *two]) for two in zip(parts, sums, strict=True)]

            sums = _loop(builder, number(0), count, [_load(builder, one, vector) for one in here], step)
            for value, one in zip(sums, here, strict=True):
                _store(builder, value, one)

        def many(n, carried):
            add(builder.mul(n, number(SPAN)), LANES, SPAN // LANES)
            return []

        whole = builder.lshr(length, number(SPAN.bit_length() - 1))
        with builder.if_then(builder.icmp_signed(">", whole, number(0))):
            _loop(builder, number(0), whole, [], many)
        lanes = SPAN // 2
        while lanes:
            with builder.if_then(builder.icmp_signed("!=", builder.and_(length, number(lanes)), number(0))):
                # The bits of the length above this one are done.
                add(builder.and_(length, number(-2 * lanes)), min(lanes, LANES), max(1, lanes // LANES))
            lanes //= 2
        return context.get_dummy_value()

    return signature, generate


def _from_bits(builder, value):
    wide = ir.IntType(32)
    return builder.bitcast(builder.shl(builder.zext(value, wide), wide(16)), ir.FloatType())


def _from_half(builder, value):
    return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())


@intrinsic
def widen(typing, stored):
    """float32 of a value as it is stored: float32, the bits of bfloat16 as uint16, of float16 as int16."""

    def generate(context, builder, signature, arguments):
        if stored == types.float32:
            return arguments[0]
        return (_from_half if stored == types.int16 else _from_bits)(builder, arguments[0])

    return types.float32(stored), generate


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
_read_half = _reader(ir.IntType(16), _from_half)
_read_bfloat = _reader(ir.IntType(16), _from_bits)


@njit(inline="always")
def _lay_row(out, address, stored, index, scale):
    """out = scale * the values from `index` on, of a factor at an address."""
    if stored == 0:
        for n in range(len(out)):
            out[n] = _read_single(address, index + n) * scale
    elif stored == 1:
        for n in range(len(out)):
            out[n] = _read_half(address, index + n) * scale
    elif stored == 2:
        for n in range(len(out)):
            out[n] = _read_bfloat(address, index + n) * scale
    else:
        out[:] = 1.0


def lay_strips(right, table, columns):
    """right (strips, T, COLUMNS) = the factors (r, columns) of a table, one below the other."""
    for n in range(len(table)):
        address, stored, rank, place = table[n]
        for row in range(rank):
            for strip in range(len(right)):
                start = strip * COLUMNS
                out = right[strip, place + row, : min(COLUMNS, columns - start)]
                _lay_row(out, address, stored, row * columns + start, np.float32(1.0))


@intrinsic
def narrow(typing, value, stored):
    """A float32 as `stored` is stored, rounded to nearest, ties to even; of `stored` only the type counts."""

    def generate(context, builder, signature, arguments):
        if stored == types.float32:
            return arguments[0]
        short = ir.IntType(16)
        if stored == types.int16:
            return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), short)
        # By integers: the instruction for it takes the smallest numbers for zero.
        wide = ir.IntType(32)
        bits = builder.bitcast(arguments[0], wide)
        odd = builder.and_(builder.lshr(bits, wide(16)), wide(1))
        rounded = builder.add(bits, builder.add(odd, wide(0x7FFF)))
        # A NaN stays one: rounding could carry it over to zero.
        nan = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        kept = builder.select(nan, builder.or_(bits, wide(0x400000)), rounded)
        return builder.trunc(builder.lshr(kept, wide(16)), short)

    return stored(types.float32, stored), generate


def add_terms(weight, start, stop, first, block, left, lefts, scales, right, ranks, sets, factors):
    """weight[start:stop] += all terms, of which row `first` is that of weight[0].

    block (BLOCK_ROWS, BLOCK_COLUMNS) and left (stop + ROWS - 1 rows at least, T) are room to work in:
    the rows of left are the weight's, and those that are needed are laid out here, of the factors of a
    table, each times its scale. right (strips, T, COLUMNS) and ranks (terms, 2) are as for `outer`.
    A row of `sets` (sets, FIELDS) is N layers of one Kronecker factorisation: what is added to a row of
    the weight, N, i, k, j, and where in `factors` w1 (l, i, N) and w2 (N, k, j) start.
    """
    columns, depth = weight.shape[1], left.shape[1]
    for n in range(len(lefts)):
        address, stored, rank, place = lefts[n]
        for row in range(start, stop):
            _lay_row(left[row, place : place + rank], address, stored, (first + row) * rank, scales[n])
    # The right factors of a block's columns stay in the cache for all of its rows.
    for column in range(0, columns, BLOCK_COLUMNS):
        width = min(BLOCK_COLUMNS, columns - column)
        for row in range(start, stop, BLOCK_ROWS):
            height = min(BLOCK_ROWS, stop - row)
            if len(ranks):
                # What it makes beyond the height and the width is not used.
                for n in range(0, width, COLUMNS):
                    strip = right.ctypes.data + (column + n) * depth * 4
                    for m in range(0, height, ROWS):
                        outer(
                            block.ctypes.data + (m * BLOCK_COLUMNS + n) * 4,
                            BLOCK_COLUMNS,
                            left.ctypes.data + (row + m) * depth * 4,
                            depth,
                            strip,
                            ranks.ctypes.data,
                            len(ranks),
                        )
            else:
                block[:height] = 0
            for s in range(len(sets)):
                offset, count = sets[s, 0], sets[s, 1]
                i, k, j = sets[s, 2], sets[s, 3], sets[s, 4]
                w1, w2 = sets[s, 5], sets[s, 6]
                for m in range(height):
                    a, b = divmod(first + row + m + offset, k)
                    for c in range(column // j, (column + width - 1) // j + 1):
                        low, high = max(column, c * j), min(column + width, (c + 1) * j)
                        combine(
                            block.ctypes.data + (m * BLOCK_COLUMNS + low - column) * 4,
                            high - low,
                            factors.ctypes.data + (w1 + (a * i + c) * count) * 4,
                            factors.ctypes.data + (w2 + b * j + low - c * j) * 4,
                            k * j,
                            count,
                        )
            for m in range(height):
                made, stored = block[m], weight[row + m, column : column + width]
                for n in range(width):
                    stored[n] = narrow(widen(stored[n]) + made[n], stored[n])


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
        *[_matrix(single, 2)] * 2,
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
