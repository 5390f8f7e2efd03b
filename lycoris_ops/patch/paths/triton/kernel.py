# pyright: basic, reportMissingImports=false, reportArgumentType=false
# ruff: noqa: SIM102, SIM300
# An `if` over `constexpr` values alone is decided when the kernel is compiled. Conditions at run time go into
# an inner `if` of their own.
"""The kernel that patches a weight: each tile is read once, all terms are added to it, it is written once.

A term is `scale * first * second`, value by value, on some rows of the weight. A LowRank or Dense change has
no second factor. A Hadamard change has two factors of the weight's size. A Kronecker change with w2 (k, j)
has w1 as the first factor, read at row // k and column // j, and w2 as the second, read at row % k and column
% j. A factor is a matrix, or a product of two matrices; only the current tile of the product is formed.

The terms are a table of 64-bit integers on the device. So another number of terms, kind or rank needs no new
compilation. The FIELDS integers of a term:

     0  the first row of the weight that the term is added to
     1  the row after the last one
     2  what is added to a row of the weight to get the row of the term
     3  the divisor of the term's row that gives the row of the first factor
     4  the divisor of the column that gives the column of the first factor
     5  the number of rows after which the second factor repeats
     6  the number of columns after which the second factor repeats
     7  the first factor, six integers
    13  the second factor, six integers
    19  the scale, a float32 in the lower half
    20  the address of the weight
    21  nothing

The integers of a factor:

     0  address of `left`: the matrix itself, or (rows, rank) where the factor is a product
     1  address of `right`: (rank, columns); the matrix again where the factor is one matrix
     2  dtype of `left`: 0 float32, 1 float16, 2 bfloat16
     3  dtype of `right`, likewise
     4  the rank: 0 where the factor is one matrix, -1 where there is no factor
     5  the number of columns
"""

from __future__ import annotations

import triton
import triton.language as tl

# The places of the fields are written as numbers: Triton compares each such value at every launch.
FIELDS = tl.constexpr(22)


@triton.jit
def _at(address, index, mask, DTYPE: tl.constexpr, PLAIN: tl.constexpr):
    """The values of a dtype at an address, as float32. PLAIN is as in `add_terms`."""
    pointer = address.to(tl.pointer_type(DTYPE))
    if PLAIN:
        # In bytes.
        pointer = tl.multiple_of(pointer, 16)
    return tl.load(pointer + index, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _read(address, stored, index, mask, UNIFORM: tl.constexpr, PLAIN: tl.constexpr):
    """The values at an address, as float32.

    `stored` is the number of their dtype as in the table. UNIFORM is the number that all factors share, so
    that it need not be looked up at run time; -1 where they differ.
    """
    if UNIFORM == 0:
        value = _at(address, index, mask, tl.float32, PLAIN)
    elif UNIFORM == 1:
        value = _at(address, index, mask, tl.float16, PLAIN)
    elif UNIFORM == 2:
        value = _at(address, index, mask, tl.bfloat16, PLAIN)
    else:
        if stored == 0:
            value = _at(address, index, mask, tl.float32, PLAIN)
        elif stored == 1:
            value = _at(address, index, mask, tl.float16, PLAIN)
        else:
            value = _at(address, index, mask, tl.bfloat16, PLAIN)
    return value


@triton.jit
def _factor(
    factor,
    row,
    column,
    row_mask,
    column_mask,
    UNIFORM: tl.constexpr,
    PLAIN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    """The values (ROWS, COLUMNS) of a factor at `row` (ROWS,) and `column` (COLUMNS,).

    `factor` points to its six integers in the table.
    """
    left = tl.load(factor)
    right = tl.load(factor + 1)
    left_stored = tl.load(factor + 2)
    right_stored = tl.load(factor + 3)
    rank = tl.load(factor + 4).to(tl.int32)
    width = tl.load(factor + 5)
    if PLAIN:
        rank = tl.multiple_of(rank, 8)
        width = tl.multiple_of(width, 16)
    value = tl.zeros((ROWS, COLUMNS), tl.float32)
    if rank == 0:
        index = row.to(tl.int64)[:, None] * width + column[None, :]
        value = _read(left, left_stored, index, row_mask[:, None] & column_mask[None, :], UNIFORM, PLAIN)
    else:
        for start in range(0, rank, RANK):
            inner = start + tl.arange(0, RANK)
            inner_mask = inner < rank
            index = row.to(tl.int64)[:, None] * rank + inner[None, :]
            a = _read(left, left_stored, index, row_mask[:, None] & inner_mask[None, :], UNIFORM, PLAIN)
            index = inner.to(tl.int64)[:, None] * width + column[None, :]
            b = _read(right, right_stored, index, inner_mask[:, None] & column_mask[None, :], UNIFORM, PLAIN)
            value = tl.dot(a, b, value, input_precision=PRECISION)
    return value


@triton.jit
def _stored(value, DTYPE: tl.constexpr):
    """Float32 values in the weight's dtype, rounded to nearest, ties to even.

    bfloat16 is rounded by integer arithmetic on the bits: Triton's interpreter would truncate instead.
    """
    if DTYPE == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        # Rounding could turn a NaN into infinity: its bits are truncated instead, and 0x40 keeps it a NaN.
        nearest = tl.where(value == value, nearest, (bits >> 16) | 0x40)
        result = nearest.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = value.to(DTYPE)
    return result


# By default Triton compiles variants for arguments that are 1 or a multiple of 16.
@triton.jit(do_not_specialize=["rows", "terms"])
def add_terms(
    weight,
    row_stride,
    column_stride,
    rows,
    columns,
    table,
    terms,
    PAIRS: tl.constexpr,
    UNIFORM: tl.constexpr,
    PLAIN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
    MANY: tl.constexpr,
):
    """weight (rows, columns) += the sum of `terms` terms; each program patches one tile (ROWS, COLUMNS).

    `table` has the terms' fields. PAIRS says whether any term has a second factor. UNIFORM and PRECISION are
    as in `_read` and `tl.dot`. RANK is the part of a rank that is multiplied at once. PLAIN says that no term
    repeats or shares values, and that all addresses are multiples of 16 bytes, ranks multiples of 8 and
    columns multiples of 16. Then no index is divided, and the factors are read 16 bytes at once.

    MANY says that the launch patches many weights, along the second axis of its grid. `table` then has
    `terms` terms for each, and their addresses, which are multiples of 16 bytes. `weight` is one of them, and
    gives the dtype. Programs of these launches look up their weight before they read it.

    The sum is formed first and then added to the weight, so that a float32 weight too is rounded once.
    """
    if MANY:
        table += tl.program_id(1) * (terms * FIELDS)
        weight = tl.multiple_of(tl.load(table + 20).to(weight.dtype), 16)
    across = tl.cdiv(columns, COLUMNS)
    first_row = (tl.program_id(0) // across) * ROWS
    row = first_row + tl.arange(0, ROWS)
    column = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    column_mask = column < columns
    # The weight is read first: it need not wait for the table, as the factors must.
    address = weight + row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
    mask = (row < rows)[:, None] & column_mask[None, :]
    before = tl.load(address, mask=mask, other=0.0)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for n in range(terms):
        term = table + n * FIELDS
        start = tl.load(term).to(tl.int32)
        stop = tl.load(term + 1).to(tl.int32)
        if (first_row < stop) & (first_row + ROWS > start):
            own = row + tl.load(term + 2).to(tl.int32)
            row_mask = (row >= start) & (row < stop)
            if PLAIN:
                first_row_of, first_column_of, second_row_of, second_column_of = own, column, own, column
            else:
                first_row_of = own // tl.load(term + 3).to(tl.int32)
                first_column_of = column // tl.load(term + 4).to(tl.int32)
                second_row_of = own % tl.load(term + 5).to(tl.int32)
                second_column_of = column % tl.load(term + 6).to(tl.int32)
            scale = tl.load(term + 19).to(tl.int32).to(tl.float32, bitcast=True)
            value = scale * _factor(
                term + 7,
                first_row_of,
                first_column_of,
                row_mask,
                column_mask,
                UNIFORM,
                PLAIN,
                PRECISION,
                ROWS,
                COLUMNS,
                RANK,
            )
            if PAIRS:
                if tl.load(term + 13 + 4) >= 0:
                    value *= _factor(
                        term + 13,
                        second_row_of,
                        second_column_of,
                        row_mask,
                        column_mask,
                        UNIFORM,
                        PLAIN,
                        PRECISION,
                        ROWS,
                        COLUMNS,
                        RANK,
                    )
            # Other rows of the tile stay as they are even where a factor holds NaN or infinity.
            total += tl.where(row_mask[:, None], value, 0.0)
    tl.store(address, _stored(before.to(tl.float32) + total, weight.dtype.element_ty), mask=mask)
