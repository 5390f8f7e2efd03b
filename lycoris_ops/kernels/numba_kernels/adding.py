# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false
"""What is computed in float32, added to what is stored."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .vectors import LANES, VECTORS, in_vectors, load, loop, prefetch, stored_at


def tile(builder, out, stride, rows):
    """Where the vectors of rows x COLUMNS stand, of which `out` is the first value."""
    number = stride.type
    starts = [builder.mul(stride, number(n)) for n in range(rows)]
    places = [builder.add(start, number(LANES * m)) for start in starts for m in range(VECTORS)]
    return [builder.gep(out, [place]) for place in places]


@intrinsic
def size_stored(typing, stored):
    """The bytes of a value, which has the type that it is stored as."""

    def generate(context, builder, signature, arguments):
        return ir.IntType(64)(context.get_abi_sizeof(context.get_value_type(stored)))

    return types.intp(stored), generate


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


@intrinsic
def clear(typing, address, length):
    """Make so many float32 values zero."""

    def generate(context, builder, signature, arguments):
        address, length = arguments
        pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
        cgutils.memset(builder, pointer, builder.mul(length, length.type(4)), 0)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate
