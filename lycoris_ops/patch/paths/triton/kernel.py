# pyright: basic, reportMissingImports=false, reportArgumentType=false
# ruff: noqa: SIM102, SIM300
# An `if` over constants alone is decided when the kernel is compiled: nothing else may stand in it.
"""The kernel that patches a weight: a tile is read once, every term is added, it is written once.

A term is `scale * first * second` on some rows of the weight: a LowRank or Full change has no second
factor, a Hadamard one has two of the weight's size, a Kronecker one reads them at row // k and row % k.
A factor is a matrix, or the product of two, of which only the tile meant is ever formed.

The terms are a table of 64-bit integers on the device, and their scales one of float32, so that their
number, kinds and ranks compile nothing anew. Every term is FIELDS integers:

     0  the first row of the weight that it is for, and 1, the end of these rows
     2  what is added to a row of the weight to get one of the term
     3  rows and 4 columns by which the first factor's row and column are divided
     5  rows and 6 columns after which the second factor repeats
     7  the first factor, 13 the second, six integers each:
        0  address of `left`, the matrix itself or (rows, rank), and 1, of `right` (rank, columns)
        2  how `left` and 3, how `right` is stored: 0 float32, 1 float16, 2 bfloat16
        4  the rank: 0 where the factor is a matrix, -1 where there is none
        5  its columns
"""

from __future__ import annotations

import triton
import triton.language as tl

FIELDS = tl.constexpr(19)
FIRST = tl.constexpr(7)
SECOND = tl.constexpr(13)


@triton.jit
def _read(address, stored, index, mask, UNIFORM: tl.constexpr):
    """Values at an address, as float32. UNIFORM is how all of them are stored, -1 where that differs."""
    if UNIFORM == 0:
        value = tl.load(address.to(tl.pointer_type(tl.float32)) + index, mask=mask, other=0.0)
    elif UNIFORM == 1:
        value = tl.load(address.to(tl.pointer_type(tl.float16)) + index, mask=mask, other=0.0).to(tl.float32)
    elif UNIFORM == 2:
        value = tl.load(address.to(tl.pointer_type(tl.bfloat16)) + index, mask=mask, other=0.0).to(tl.float32)
    else:
        if stored == 0:
            value = _read(address, stored, index, mask, 0)
        elif stored == 1:
            value = _read(address, stored, index, mask, 1)
        else:
            value = _read(address, stored, index, mask, 2)
    return value


@triton.jit
def _factor(
    factor,
    row,
    column,
    row_mask,
    column_mask,
    UNIFORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    """The values of a factor at some rows and columns, by the fields of it that start at `factor`."""
    left = tl.load(factor)
    right = tl.load(factor + 1)
    left_stored = tl.load(factor + 2)
    right_stored = tl.load(factor + 3)
    rank = tl.load(factor + 4).to(tl.int32)
    width = tl.load(factor + 5)
    value = tl.zeros((ROWS, COLUMNS), tl.float32)
    if rank == 0:
        index = row.to(tl.int64)[:, None] * width + column[None, :]
        value = _read(left, left_stored, index, row_mask[:, None] & column_mask[None, :], UNIFORM)
    else:
        for start in range(0, rank, RANK):
            inner = start + tl.arange(0, RANK)
            inner_mask = inner < rank
            index = row.to(tl.int64)[:, None] * rank + inner[None, :]
            a = _read(left, left_stored, index, row_mask[:, None] & inner_mask[None, :], UNIFORM)
            index = inner.to(tl.int64)[:, None] * width + column[None, :]
            b = _read(right, right_stored, index, inner_mask[:, None] & column_mask[None, :], UNIFORM)
            value = tl.dot(a, b, value, input_precision=PRECISION)
    return value


@triton.jit
def _stored(value, DTYPE: tl.constexpr):
    """Float32 values in the weight's dtype, rounded to nearest, ties to even.

    bfloat16 is rounded on the bits: the interpreter's own conversion cuts them off.
    """
    if DTYPE == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        # Rounding could carry a NaN over to infinity.
        nearest = tl.where(value == value, nearest, (bits >> 16) | 0x40)
        result = nearest.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = value.to(DTYPE)
    return result


@triton.jit(do_not_specialize=["rows", "terms"])
def add_terms(
    weight,
    row_stride,
    column_stride,
    rows,
    columns,
    table,
    scales,
    terms,
    PAIRS: tl.constexpr,
    UNIFORM: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    """weight (rows, columns) += the sum of `terms` terms, a tile of ROWS x COLUMNS for each program.

    PAIRS says whether any term has a second factor. The sum is formed first and then added to the
    weight, so that a float32 weight too is rounded once.
    """
    across = tl.cdiv(columns, COLUMNS)
    first_row = (tl.program_id(0) // across) * ROWS
    row = first_row + tl.arange(0, ROWS)
    column = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    column_mask = column < columns
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for n in range(terms):
        term = table + n * FIELDS
        start = tl.load(term).to(tl.int32)
        stop = tl.load(term + 1).to(tl.int32)
        if (first_row < stop) & (first_row + ROWS > start):
            own = row + tl.load(term + 2).to(tl.int32)
            row_mask = (row >= start) & (row < stop)
            value = tl.load(scales + n) * _factor(
                term + FIRST,
                own // tl.load(term + 3).to(tl.int32),
                column // tl.load(term + 4).to(tl.int32),
                row_mask,
                column_mask,
                UNIFORM,
                PRECISION,
                ROWS,
                COLUMNS,
                RANK,
            )
            if PAIRS:
                if tl.load(term + SECOND + 4) >= 0:
                    value *= _factor(
                        term + SECOND,
                        own % tl.load(term + 5).to(tl.int32),
                        column % tl.load(term + 6).to(tl.int32),
                        row_mask,
                        column_mask,
                        UNIFORM,
                        PRECISION,
                        ROWS,
                        COLUMNS,
                        RANK,
                    )
            # Rows beside the term's own stay as they are even where a factor is not finite.
            total += tl.where(row_mask[:, None], value, 0.0)
    place = weight + row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
    mask = (row < rows)[:, None] & column_mask[None, :]
    before = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, _stored(before + total, weight.dtype.element_ty), mask=mask)
