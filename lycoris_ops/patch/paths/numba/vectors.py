# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportAttributeAccessIssue=false
"""LLVM code on vectors of float32, of which the kernel of this folder is built."""

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, types
from numba.core import cgutils

REGISTERS: dict[str, tuple[int, int, int]] = {
    # Instructions: rows and vectors of a tile, and values of a vector. A product holds a tile in registers,
    # of which there are 32 with AVX-512 and 16 else; two more hold a row of the right factor.
    "avx512f": (12, 2, 16),
    "": (6, 2, 8),
}
# Numba can be told to compile for less than the processor is.
FEATURES = {} if config.CPU_NAME or config.CPU_FEATURES else llvm.get_host_cpu_features()

ROWS, VECTORS, LANES = next(size for name, size in REGISTERS.items() if not name or FEATURES.get(name))
COLUMNS = VECTORS * LANES
"""Columns of a tile: the right factors stand in strips of as many."""

SPAN = 4 * LANES
"""Columns of a row that are worked on at once where nothing else needs a register."""

HALF = bool(FEATURES.get("f16c")) or not llvm.get_process_triple().startswith(("x86", "i686", "amd64"))
"""Whether the processor converts float16: without, LLVM calls a function that nobody provides."""

NUMBER, SINGLE, WORD, SHORT = ir.IntType(64), ir.FloatType(), ir.IntType(32), ir.IntType(16)
BYTES = ir.IntType(8).as_pointer()


def loop(builder, start, stop, carried, body):
    """`carried` after `body(n, carried)` for n from start to stop - 1, which is at least once."""
    before, head = builder.block, builder.append_basic_block("loop")
    builder.branch(head)
    builder.position_at_end(head)
    number = builder.phi(NUMBER)
    inside = [builder.phi(value.type) for value in carried]
    after = body(number, inside)
    following = builder.add(number, NUMBER(1))
    for phi, first, last in zip([number, *inside], [start, *carried], [following, *after], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, builder.block)
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", following, stop), head, done)
    builder.position_at_end(done)
    return after


def in_vectors(builder, length, body):
    """`body(start, lanes, vectors)` for pieces of a length of at least 1 that are together all of it."""

    def many(n, carried):
        body(builder.mul(n, NUMBER(SPAN)), LANES, SPAN // LANES)
        return []

    whole = builder.lshr(length, NUMBER(SPAN.bit_length() - 1))
    with builder.if_then(builder.icmp_signed(">", whole, NUMBER(0))):
        loop(builder, NUMBER(0), whole, [], many)
    lanes = SPAN // 2
    while lanes:
        with builder.if_then(builder.icmp_signed("!=", builder.and_(length, NUMBER(lanes)), NUMBER(0))):
            # The bits of the length above this one are done.
            body(builder.and_(length, NUMBER(-2 * lanes)), min(lanes, LANES), max(1, lanes // LANES))
        lanes //= 2


def fma(builder, lanes):
    """The vector of float32 that is so long, and the function a * b + c of three of them."""
    vector = ir.VectorType(SINGLE, lanes)
    kind = ir.FunctionType(vector, [vector] * 3)
    return vector, cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{lanes}f32")


def at(builder, address, kind=SINGLE):
    """A pointer to values of a type at an address."""
    return builder.inttoptr(address, kind.as_pointer())


def load(builder, pointer, vector):
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4)


def store(builder, value, pointer):
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=4)


def splat(builder, value, vector):
    one = builder.insert_element(vector(ir.Undefined), value, WORD(0))
    places = ir.VectorType(WORD, vector.count)
    return builder.shuffle_vector(one, vector(ir.Undefined), places([0] * vector.count))


def prefetch(builder, address, length):
    """Start to bring so many bytes, at least 1, into the cache: they will be written."""
    kind = ir.FunctionType(ir.VoidType(), [BYTES, WORD, WORD, WORD])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")

    def line(n, carried):
        place = builder.add(address, builder.mul(n, NUMBER(64)))
        builder.call(function, [builder.inttoptr(place, BYTES), WORD(1), WORD(3), WORD(1)])
        return []

    loop(builder, NUMBER(0), builder.lshr(builder.add(length, NUMBER(63)), NUMBER(6)), [], line)


def stored_at(context, builder, address, stored):
    """A pointer to what is stored at an address, and how vectors of float32 are read there and written."""
    single, (widen, narrow) = context.get_value_type(stored), CONVERTED[stored]
    size = context.get_abi_sizeof(single)

    def read(pointer, lanes):
        here = builder.bitcast(pointer, ir.VectorType(single, lanes).as_pointer())
        return widen(builder, builder.load(here, align=size), lanes)

    def write(value, pointer):
        short = narrow(builder, value, value.type.count)
        builder.store(short, builder.bitcast(pointer, short.type.as_pointer()), align=size)

    return at(builder, address, single), read, write


def _same(builder, value, lanes):
    return value


def _from_bfloat16(builder, value, lanes):
    wide = ir.VectorType(WORD, lanes)
    shifted = builder.shl(builder.zext(value, wide), wide([16] * lanes))
    return builder.bitcast(shifted, ir.VectorType(SINGLE, lanes))


def _to_bfloat16(builder, value, lanes):
    # By integers: the instruction for it takes the smallest numbers for zero.
    wide = ir.VectorType(WORD, lanes)
    bits, sixteen = builder.bitcast(value, wide), wide([16] * lanes)
    odd = builder.and_(builder.lshr(bits, sixteen), wide([1] * lanes))
    rounded = builder.add(bits, builder.add(odd, wide([0x7FFF] * lanes)))
    # A NaN stays one: rounding could carry it over to zero.
    nan = builder.fcmp_unordered("uno", value, value)
    kept = builder.select(nan, builder.or_(bits, wide([0x400000] * lanes)), rounded)
    return builder.trunc(builder.lshr(kept, sixteen), ir.VectorType(SHORT, lanes))


def _from_float16(builder, value, lanes):
    half = builder.bitcast(value, ir.VectorType(ir.HalfType(), lanes))
    return builder.fpext(half, ir.VectorType(SINGLE, lanes))


def _to_float16(builder, value, lanes):
    half = builder.fptrunc(value, ir.VectorType(ir.HalfType(), lanes))
    return builder.bitcast(half, ir.VectorType(SHORT, lanes))


CONVERTED = {
    types.float32: (_same, _same),
    types.uint16: (_from_bfloat16, _to_bfloat16),
    types.int16: (_from_float16, _to_float16),
}
"""Of what weights are stored as, the bits of bfloat16 as uint16 and of float16 as int16: to float32 and
back, rounded to nearest, ties to even. Numba has no type for either."""
