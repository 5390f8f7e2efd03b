# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false
"""LLVM code on vectors of float32, as the kernels of this folder are built of."""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray

REGISTERS: dict[str, tuple[int, int, int]] = {
    # instructions: rows, vectors of a row, and values of a vector; three times rows * vectors are held.
    "avx512f": (4, 2, 16),
    "": (2, 2, 8),
}
# Numba can be told to compile for less than what is here.
FEATURES = {} if config.CPU_NAME or config.CPU_FEATURES else llvm.get_host_cpu_features()

ROWS, VECTORS, LANES = next(size for name, size in REGISTERS.items() if not name or FEATURES.get(name))
COLUMNS = VECTORS * LANES
"""Columns that a product makes at once: the right factors stand in strips of as many."""

SPAN = 4 * LANES
"""Columns of a row that are worked on at once."""

BLOCK_ROWS, BLOCK_COLUMNS = 3 * ROWS, 512
"""The block of the weight, up to 24 KB in float32. A product makes its rows at once."""

HALF = bool(FEATURES.get("f16c")) or not llvm.get_process_triple().startswith(("x86", "i686", "amd64"))
"""Whether the processor converts float16: without, LLVM calls a function that nobody provides."""


def loop(builder, start, stop, carried, body):
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


def fma(builder, lanes):
    """The vector of float32 that is so long, and the function a * b + c of three of them."""
    vector = ir.VectorType(ir.FloatType(), lanes)
    kind = ir.FunctionType(vector, [vector] * 3)
    return vector, cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{lanes}f32")


def load(builder, pointer, vector=None):
    if vector is None:
        return builder.load(pointer)
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4)


def store(builder, value, pointer):
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=4)


def prefetch(builder, pointer):
    """Start to bring the line of a value into the cache: it will be written."""
    byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [builder.bitcast(pointer, byte), flag(1), flag(3), flag(1)])


def sizes(builder, vector):
    """The absolute values of a vector of float32 as integers: in the same order, and a NaN is the largest."""
    words = ir.VectorType(ir.IntType(32), vector.type.count)
    return builder.and_(builder.bitcast(vector, words), words([0x7FFFFFFF] * words.count))


def larger(builder, one, other):
    return builder.select(builder.icmp_signed(">", one, other), one, other)


def splat(builder, value, vector):
    one = builder.insert_element(vector(ir.Undefined), value, ir.IntType(32)(0))
    lanes = ir.VectorType(ir.IntType(32), vector.count)
    return builder.shuffle_vector(one, vector(ir.Undefined), lanes([0] * vector.count))


def stored_at(context, builder, address, stored):
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


def in_vectors(builder, length, body):
    """`body(start, lanes, vectors)` for pieces of a length of at least 1 that are together all of it."""
    number = length.type

    def many(n, carried):
        body(builder.mul(n, number(SPAN)), LANES, SPAN // LANES)
        return []

    whole = builder.lshr(length, number(SPAN.bit_length() - 1))
    with builder.if_then(builder.icmp_signed(">", whole, number(0))):
        loop(builder, number(0), whole, [], many)
    lanes = SPAN // 2
    while lanes:
        with builder.if_then(builder.icmp_signed("!=", builder.and_(length, number(lanes)), number(0))):
            # The bits of the length above this one are done.
            body(builder.and_(length, number(-2 * lanes)), min(lanes, LANES), max(1, lanes // LANES))
        lanes //= 2


def from_bits(builder, value):
    wide = _like(value.type, ir.IntType(32))
    shifted = builder.shl(builder.zext(value, wide), _all(wide, 16))
    return builder.bitcast(shifted, _like(value.type, ir.FloatType()))


def from_half(builder, value):
    half = builder.bitcast(value, _like(value.type, ir.HalfType()))
    return builder.fpext(half, _like(value.type, ir.FloatType()))


def _like(kind, single):
    """A type of single values, or of vectors of them where `kind` is one of vectors."""
    return ir.VectorType(single, kind.count) if isinstance(kind, ir.VectorType) else single


def _all(kind, value):
    return kind([value] * kind.count) if isinstance(kind, ir.VectorType) else kind(value)


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


def same(builder, value):
    return value


CONVERTED = {
    types.float32: (same, same),
    types.uint16: (from_bits, _to_bits),
    types.int16: (from_half, _to_half),
}
"""Of what weights are stored as, the bits of bfloat16 as uint16 and of float16 as int16: to float32 and
back, rounded to nearest, ties to even."""


def some(builder, pointer, vector, length):
    """The vector at a pointer, of which only the first `length` values are read; the others are zero."""
    number = length.type
    places = ir.VectorType(number, vector.count)
    mask = builder.icmp_signed("<", places(list(range(vector.count))), splat(builder, length, places))
    flag = ir.IntType(32)
    kind = ir.FunctionType(vector, [vector.as_pointer(), flag, mask.type, vector])
    single = {ir.FloatType(): "f32", ir.IntType(16): "i16"}[vector.element]
    name = f"llvm.masked.load.v{vector.count}{single}.p0v{vector.count}{single}"
    masked = cgutils.get_or_insert_function(builder.module, kind, name)
    here = builder.bitcast(pointer, vector.as_pointer())
    return builder.call(masked, [here, flag(2), mask, vector([0] * vector.count)])


def transposed(builder, rows):
    """The columns of a square of vectors, each of a power of two."""
    size = len(rows)
    places = ir.VectorType(ir.IntType(32), size)
    halves = [[n // 2 + n % 2 * size + half * size // 2 for n in range(size)] for half in range(2)]
    for _ in range(size.bit_length() - 1):
        pairs = [(rows[n], rows[n + size // 2]) for n in range(size // 2)]
        rows = [builder.shuffle_vector(*pair, places(half)) for pair in pairs for half in halves]
    return rows


@intrinsic
def _pointer(typing, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.intp), generate


@njit(inline="always")
def integers(address, length):
    """The array of 64-bit integers at an address."""
    return carray(_pointer(address), (length,), np.int64)


@njit(inline="always")
def table(address, rows, width):
    """The same as rows."""
    return carray(_pointer(address), (rows, width), np.int64)


@njit(inline="always")
def singles(address, length):
    """The array of float32 values at an address."""
    return carray(_pointer(address), (length,), np.float32)
