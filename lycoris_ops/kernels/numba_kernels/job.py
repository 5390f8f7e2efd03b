"""What a call of a kernel says: integers, of which the first ones are shared by the threads that work on it.

They count from zero. An address is that of a first value.
"""

(
    NEXT,  # the first row of the weight that no thread has claimed
    DONE,  # how many rows are done
    JOINED,  # how many threads took the job from their slot, once it is not offered any more
    LEFT,  # how many of them are through with it
    TAKEN,  # how many of the factors that all threads read are taken by one to lay out
    LAID,  # how many of them are laid out
    FIRST,  # of what they are laid out in, the first strip that no thread has taken to make it fixed-point
    FIXED,  # how many strips are fixed-point
) = range(8)

NEW, OPEN = -2, -1
"""What JOINED is before the job is offered, and while it is."""

BY_ROWS, COUNTS = 4, 8
"""How many of these are of one weight's rows, not of what is laid out for all; and how many there are."""

(
    WEIGHT,  # address of the rows of the weight, which follow each other
    HEIGHT,  # how many they are
    WIDTH,  # the columns
    ROW,  # of the layers' rows the one that is for the first of these
    THREADS,
    SLOTS,  # address of the slots that threads wait at
    MOST,  # panels of left factors that a thread has room for
    LEVELS,  # address of room for a float32 factor for each of the ranks
    RIGHT,  # address of room for the right factors
    OWN,  # address of room for the first thread
    ROOM,  # bytes from there to the next one's
    PAIRS,  # address of PLACED integers for each pair of factors
    COUNT,  # how many pairs there are
    SCALES,  # address of a float32 factor for each
    DEPTH,  # the ranks of all
    RANKS,  # address of the ranks of the pairs that are Hadamard terms, two and two
    TERMS,  # how many terms there are
    SETS,  # address of FIELDS integers for each set of Kronecker layers
    SET_COUNT,  # how many sets there are
    FACTORS,  # address of their factors
) = range(8, 28)

LENGTH = 28

SLOT = 8
"""Integers of a thread's slot, a cache line: its state, and whether the job is offered there."""

STATE, OFFERED = 0, 1

PARKED, WAITING, BUSY = range(3)
"""Nobody is at the slot; a thread waits for the address of a job in place of this; it took one."""

FLOAT32, FLOAT16, BFLOAT16 = range(3)
"""How a factor is stored."""

PLACED = 6
"""Of a pair of factors: the address of the left one and how it is stored, those of the right one, their rank,
and the first of its places. The left one is (rows, rank), the right one (rank, columns)."""

FIELDS = 7
"""Of a set, N layers of one Kronecker factorisation: what is added to a row of the weight, N, i, k, j, and
where in the factors w1 (l, i, N) and w2 (N, k, j) start."""
