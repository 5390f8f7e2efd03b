# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false
"""How the threads of a kernel share the rows of a weight: each claims some, until none are left.

The first claims are large and the last ones small, so that all are done at about the same time, and none
waits for one that has not begun.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .vectors import BLOCK_ROWS

TAKEN, LAID, NEXT, DONE = range(4)
"""Of the integers that the threads share, which begin as zeros: how many of the factors that all read are
taken by a thread to lay out, and how many are laid out; the first row that is not claimed, and how many
rows are done."""

PATIENCE = 1 << 15
"""How often another thread's work is looked for before a kernel returns: some ten microseconds."""

LEAST = BLOCK_ROWS
"""The fewest rows that are claimed, where there are as many."""


def _pointer(builder, address):
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@intrinsic
def _look(typing, address):
    def generate(context, builder, signature, arguments):
        return builder.load_atomic(_pointer(builder, arguments[0]), "acquire", 8)

    return types.intp(types.intp), generate


@intrinsic
def _add(typing, address, value):
    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _pointer(builder, arguments[0]), arguments[1], "acq_rel")

    return types.intp(types.intp, types.intp), generate


@intrinsic
def _replace(typing, address, old, new):
    """Whether `old` stood there, and `new` does now."""

    def generate(context, builder, signature, arguments):
        address, old, new = arguments
        found = builder.cmpxchg(_pointer(builder, address), old, new, "acq_rel", "acquire")
        return builder.extract_value(found, 1)

    return types.boolean(types.intp, types.intp, types.intp), generate


@njit(inline="always")
def tell(shared, which, value):
    """Add to one of the integers, and what it was; who sees it sees all that was written before, too."""
    return _add(shared.ctypes.data + 8 * which, value)


@njit(inline="always")
def reached(shared, which, value):
    """Whether one of the integers is at least so much, or becomes it soon."""
    tries = 0
    while _look(shared.ctypes.data + 8 * which) < value:
        tries += 1
        if tries == PATIENCE:
            return False
    return True


@njit(inline="always")
def claim(shared, rows, threads, most):
    """The first row of those that this thread may do, and the one after them: the same when none are left."""
    address = shared.ctypes.data + 8 * NEXT
    while True:
        start = _look(address)
        if start >= rows:
            return rows, rows
        share = (rows - start) // (2 * threads)
        stop = min(rows, start + min(most, max(LEAST, share - share % BLOCK_ROWS)))
        if _replace(address, start, stop):
            return start, stop
