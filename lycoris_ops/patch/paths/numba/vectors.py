# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportAttributeAccessIssue=false
"""Pieces of LLVM code on vectors of float32, of which this folder's kernel is built.

The functions take llvmlite's IR builder and append code to it; values, addresses and lengths are LLVM values.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, types
from numba.core import cgutils

REGISTERS: dict[str, tuple[int, int, int]] = {
    # For each set of instructions: the rows of a tile, the vectors of a row, the values of a vector. A
    # product holds a tile in registers, of which there are 32 with AVX-512 and 16 otherwise. Two more hold a
    # row of the right factor.
    "avx512f": (12, 2, 16),
    "": (6, 2, 8),
}
# Numba can be told to compile for an older processor. Its features are not known here: none are then used.
FEATURES = {} if config.CPU_NAME or config.CPU_FEATURES else llvm.get_host_cpu_features()

ROWS, VECTORS, LANES = next(size for name, size in REGISTERS.items() if not name or FEATURES.get(name))
COLUMNS = VECTORS * LANES
"""Columns of a tile. The right factors are laid out in strips of as many columns."""

SPAN = 4 * LANES
"""Values that `in_vectors` works on at once: four vectors, since no tile needs the registers there. It is a
power of two, because `in_vectors` splits lengths by their bits."""

HALF = bool(FEATURES.get("f16c")) or not llvm.get_process_triple().startswith(("x86", "i686", "amd64"))
"""Whether the processor converts float16. On x86 without F16C, LLVM would call a function that nobody
provides, which ends the process."""

NUMBER, SINGLE, WORD, SHORT = ir.IntType(64), ir.FloatType(), ir.IntType(32), ir.IntType(16)
BYTES = ir.IntType(8).as_pointer()


def loop(builder, start, stop, carried, body):
    """A loop over n from start to stop - 1 that runs at least once; returns its carried values at the end.

    `body(n, carried)` generates the code of one step and returns the values carried to the next one.
    """
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
    """Cut `length` >= 1 values into pieces and generate the code of each by `body(start, lanes, vectors)`.

    A piece is `vectors` vectors of `lanes` values from value `start` on. Pieces of SPAN values come first,
    then at most one of each smaller power of two.
    """

    def many(n, carried):
        body(builder.mul(n, NUMBER(SPAN)), LANES, SPAN // LANES)
        return []

    whole = builder.lshr(length, NUMBER(SPAN.bit_length() - 1))
    with builder.if_then(builder.icmp_signed(">", whole, NUMBER(0))):
        loop(builder, NUMBER(0), whole, [], many)
    lanes = SPAN // 2
    while lanes:
        with builder.if_then(builder.icmp_signed("!=", builder.and_(length, NUMBER(lanes)), NUMBER(0))):
            # The bits of the length above this one count the values that are done.
            body(builder.and_(length, NUMBER(-2 * lanes)), min(lanes, LANES), max(1, lanes // LANES))
        lanes //= 2


def fma(builder, lanes):
    """The type of a vector of `lanes` float32 values, and the function a * b + c of three such vectors."""
    vector = ir.VectorType(SINGLE, lanes)
    kind = ir.FunctionType(vector, [vector] * 3)
    return vector, cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{lanes}f32")


def at(builder, address, kind=SINGLE):
    """A pointer to values of the type `kind` at an address."""
    return builder.inttoptr(address, kind.as_pointer())


# Rows begin anywhere, so vectors are aligned as their values are, not as vectors.
def load(builder, pointer, vector):
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4)


def store(builder, value, pointer):
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=4)


def splat(builder, value, vector):
    one = builder.insert_element(vector(ir.Undefined), value, WORD(0))
    places = ir.VectorType(WORD, vector.count)
    return builder.shuffle_vector(one, vector(ir.Undefined), places([0] * vector.count))


def prefetch(builder, address, length):
    """Start to bring `length` >= 1 bytes at an address into the cache, to be written later."""
    kind = ir.FunctionType(ir.VoidType(), [BYTES, WORD, WORD, WORD])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")

    # One call for each cache line of 64 bytes. The three numbers of it mean: to write, to keep, data.
    def line(n, carried):
        place = builder.add(address, builder.mul(n, NUMBER(64)))
        builder.call(function, [builder.inttoptr(place, BYTES), WORD(1), WORD(3), WORD(1)])
        return []

    loop(builder, NUMBER(0), builder.lshr(builder.add(length, NUMBER(63)), NUMBER(6)), [], line)


def stored_at(context, builder, address, stored):
    """A pointer to values of the numba type `stored` at an address, with functions to read and write them.

    read(pointer, lanes) returns a vector of float32, write(vector, pointer) stores one.
    """
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
    # By integer arithmetic: the processor's instruction for it takes subnormal numbers for zero.
    wide = ir.VectorType(WORD, lanes)
    bits, sixteen = builder.bitcast(value, wide), wide([16] * lanes)
    odd = builder.and_(builder.lshr(bits, sixteen), wide([1] * lanes))
    rounded = builder.add(bits, builder.add(odd, wide([0x7FFF] * lanes)))
    # A NaN stays one: rounding could carry its bits over to zero. 0x400000 is the bit of a quiet NaN.
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
"""For each type as which the kernel reads weights, the functions that convert it to float32 and back, rounded
to nearest, ties to even. uint16 has the bits of bfloat16, int16 those of float16: numba has no types for
these."""
