# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false
"""How the threads of a kernel share the rows of a weight: each claims some, until none are left.

The first claims are large and the last ones small, so that all are done at about the same time, and none
waits for one that has not taken any. A thread that is done waits a little at its slot for the next weight: to
wake it from Python takes longer than many a weight.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .job import (
    BUSY,
    DONE,
    HEIGHT,
    JOINED,
    LEFT,
    LENGTH,
    MOST,
    NEW,
    NEXT,
    OFFERED,
    OPEN,
    PARKED,
    SLOT,
    SLOTS,
    STATE,
    THREADS,
    WAITING,
)
from .vectors import BLOCK_ROWS, integers

PATIENCE = 1 << 15
"""How often another thread's work is looked for before a kernel returns: some ten microseconds."""

LINGER = 1 << 18
"""How often a thread looks for the next weight before it goes: some hundred microseconds."""

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
def tell(job, which, value):
    """Add to one of the integers, and what it was; who sees it sees all that was written before, too."""
    return _add(job.ctypes.data + 8 * which, value)


@njit
def reached(job, which, value):
    """Whether one of the integers is at least so much, or becomes it soon."""
    tries = 0
    while _look(job.ctypes.data + 8 * which) < value:
        tries += 1
        if tries == PATIENCE:
            return False
    return True


@njit
def claim(job):
    """The first row of those that this thread may do, and the one after them: the same when none are left."""
    address, rows, most = job.ctypes.data + 8 * NEXT, job[HEIGHT], job[MOST] * BLOCK_ROWS
    while True:
        start = _look(address)
        if start >= rows:
            return rows, rows
        share = (rows - start) // (2 * job[THREADS])
        stop = min(rows, start + min(most, max(LEAST, share - share % BLOCK_ROWS)))
        if _replace(address, start, stop):
            return start, stop


@njit(inline="always")
def _slot(job, number):
    return job[SLOTS] + 8 * SLOT * number


@njit
def _offer(job):
    """Put the job into the slots where Python saw a thread wait, and still does one."""
    for number in range(1, job[THREADS]):
        slot = _slot(job, number)
        if _look(slot + 8 * OFFERED) and not _replace(slot + 8 * STATE, WAITING, job.ctypes.data):
            _add(slot + 8 * OFFERED, -1)
    job[JOINED] = OPEN


@njit
def _left_alone(job):
    """Whether no other thread has to do with the job any more: it is not offered from now on."""
    if job[JOINED] == OPEN:
        joined = 0
        for number in range(1, job[THREADS]):
            slot = _slot(job, number)
            if _look(slot + 8 * OFFERED) and not _replace(slot + 8 * STATE, job.ctypes.data, WAITING):
                joined += 1
        job[JOINED] = joined
    return reached(job, DONE, job[HEIGHT]) and reached(job, LEFT, job[JOINED])


@njit
def _next(state):
    """The address of the next job at a slot, 0 when none came."""
    tries = 0
    while True:
        address = _look(state)
        if address != WAITING and _replace(state, address, BUSY):
            return address
        tries += 1
        if tries > LINGER and _replace(state, WAITING, PARKED):
            return 0


@njit(inline="always")
def shared(work, zero, job, number):
    """Do `work(zero, job, number)` with other threads; 0 is the one that waits for them.

    False where it is not done yet, to be called again: number 0 while others still work. Other numbers go on
    with what comes to their slot. Work that returns False waits for others.
    """
    state, waiting = _slot(job, number) + 8 * STATE, False
    if number == 0 and job[JOINED] == NEW:
        _offer(job)
    while True:
        if not work(zero, job, number):
            if number == 0:
                return False
            continue
        if number == 0:
            return _left_alone(job)
        if waiting:
            # With the first of these the job is gone.
            tell(job, LEFT, 1)
            _replace(state, BUSY, WAITING)
        elif not _replace(state, PARKED, WAITING):
            return True
        waiting = True
        address = _next(state)
        if address == 0:
            return True
        job = integers(address, LENGTH)
