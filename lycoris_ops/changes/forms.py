"""Factored forms of a change: what a layer hands to the patch ops and to the bypass instead of a full delta.

Each form describes a matrix (O, K) with K = I * prod(kernel). Patching, bypass, merging and `delta` all
derive from it, so each formula is written once. Factors keep the dtype of their file. `scale` is alpha / rank
and never includes a strength.

Every form has six methods:

- `dense` returns the matrix itself.
- `scaled` returns the form of diag(rows) @ matrix @ diag(columns). `rows` is (O,). `columns` is (I,): its
  value for an input channel multiplies all positions of the kernel. None stands for ones.
- `times` returns the form of a number times the matrix.
- `embedded` returns the form of a matrix of `count` rows: rows `rows[0]` to `rows[1]` are this matrix, and
  all others are zero.
- `work` returns how many multiplications it takes to multiply one input by the factors.
- `bounds` returns the bounds of the form's `Reach`. A tensor stands for its largest absolute value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..maths.decompositions import Span
from ..maths.recompute import by_torch_func, hadamard
from ..maths.shapes import Rows
from ..maths.tensors import compute_dtype, kronecker, largest_of, shaped


@dataclass(frozen=True)
class Reach:
    """Bounds on the values of a matrix that is a product; `bounds` bound the values of the factors.

    `most`, the product of all bounds, bounds the matrix. `within`, the product of those above 1, also
    bounds every intermediate value, whatever the order of computing.
    """

    bounds: tuple[float, ...]

    @property
    def most(self) -> float:
        return math.prod(self.bounds)

    @property
    def within(self) -> float:
        return math.prod(bound for bound in self.bounds if not bound <= 1)


Bounds = tuple[float | Tensor, ...]
"""The bounds of a `Reach`; a tensor stands for its largest absolute value."""


@dataclass(frozen=True)
class LowRank:
    """scale * up @ down, with up (O, r) and down (r, K)."""

    up: Tensor
    down: Tensor
    scale: float

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return (self.scale * self.up.to(device, dtype)) @ self.down.to(device, dtype)

    def scaled(self, rows: Tensor | None, columns: Tensor | None) -> LowRank:
        return replace(self, up=_by_rows(self.up, rows), down=_by_columns(self.down, columns))

    def times(self, factor: float) -> LowRank:
        return replace(self, scale=self.scale * factor)

    def embedded(self, rows: Rows, count: int) -> LowRank:
        return replace(self, up=_embedded(self.up, rows, count))

    def work(self) -> int:
        return self.up.numel() + self.down.numel()

    def bounds(self) -> Bounds:
        return (abs(self.scale), *_bounds_of((self.up, self.down)))


@dataclass(frozen=True)
class Spanned(LowRank):
    """A `LowRank` whose decomposition is that of its small core; `up` is left @ core, and `down` is right."""

    span: Span
    """Its core is on the CPU."""

    @classmethod
    def of(cls, left: Tensor, core: Tensor, right: Tensor) -> Spanned:
        """left @ core @ right; the columns of left (O, R) and the rows of right (R, K) are orthonormal."""
        return cls(left @ core.to(left), right, 1.0, Span(left, core, right))

    def scaled(self, rows: Tensor | None, columns: Tensor | None) -> LowRank:
        return LowRank(self.up, self.down, self.scale).scaled(rows, columns)

    def times(self, factor: float) -> LowRank:
        span = self.span._replace(core=self.span.core * factor)
        return Spanned(self.up * factor, self.down, self.scale, span)

    def embedded(self, rows: Rows, count: int) -> LowRank:
        return LowRank(self.up, self.down, self.scale).embedded(rows, count)

    def bounds(self) -> Bounds:
        # No value of U C V^T is larger than the norm of C.
        return (float(len(self.span.core)), self.span.core)


@dataclass(frozen=True)
class Hadamard:
    """scale * (w1_a @ w1_b) * (w2_a @ w2_b), with w?_a (O, r) and w?_b (r, K)."""

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    scale: float

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        held = (self.w1_a, self.w1_b, self.w2_a, self.w2_b)
        return hadamard(*(factor.to(device, dtype) for factor in held), scale=self.scale)

    def scaled(self, rows: Tensor | None, columns: Tensor | None) -> Hadamard:
        return replace(self, w1_a=_by_rows(self.w1_a, rows), w1_b=_by_columns(self.w1_b, columns))

    def times(self, factor: float) -> Hadamard:
        return replace(self, scale=self.scale * factor)

    def embedded(self, rows: Rows, count: int) -> Hadamard:
        return replace(self, w1_a=_embedded(self.w1_a, rows, count), w2_a=_embedded(self.w2_a, rows, count))

    def work(self) -> int:
        # By Khatri-Rao factors, of rank r1 * r2.
        rows, columns = len(self.w1_a), self.w1_b.shape[1]
        return len(self.w1_b) * len(self.w2_b) * (rows + columns)

    def bounds(self) -> Bounds:
        return (abs(self.scale), *_bounds_of((self.w1_a, self.w1_b)), *_bounds_of((self.w2_a, self.w2_b)))


@dataclass(frozen=True)
class Kronecker:
    """scale * kron(w1, w2), with w1 (l, i), w2 (k, j * prod(kernel)), O = l * k and I = i * j.

    `w1` and `w2` each hold the factor itself, or two matrices (a, b) with that product. `rows` (O,) and
    `columns` (I,) hold the scaling by `scaled`, which w1 and w2 cannot absorb.
    """

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    scale: float
    rows: Tensor | None = None
    columns: Tensor | None = None

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        w1, w2 = self.scale * product(self.w1, dtype, device), product(self.w2, dtype, device)
        around = (
            None if factor is None else factor.to(device, dtype) for factor in (self.rows, self.columns)
        )
        return Dense(kronecker(w1, w2)).scaled(*around).values

    def scaled(self, rows: Tensor | None, columns: Tensor | None) -> Kronecker:
        return replace(self, rows=_times(self.rows, rows), columns=_times(self.columns, columns))

    def times(self, factor: float) -> Kronecker:
        return replace(self, scale=self.scale * factor)

    def embedded(self, rows: Rows, count: int) -> Dense:
        """The full matrix with rows of zeros around it: with them it is no Kronecker product."""
        return Dense(self.dense(torch.float32, self.w1[0].device)).embedded(rows, count)

    def work(self) -> int:
        inner = sum(factor.numel() for factor in self.w2)
        return self.w1[-1].shape[1] * inner + len(self.w1[0]) * self.between

    @property
    def between(self) -> int:
        """How many values one input has after it is multiplied by w2: i * k."""
        return self.w1[-1].shape[1] * len(self.w2[0])

    def bounds(self) -> Bounds:
        around = (factor for factor in (self.rows, self.columns) if factor is not None)
        return (abs(self.scale), *_bounds_of(self.w1), *_bounds_of(self.w2), *around)


@dataclass(frozen=True)
class Dense:
    """A change that is not factored: `values` is the matrix (O, K) itself."""

    values: Tensor

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.values.to(device, dtype)

    def scaled(self, rows: Tensor | None, columns: Tensor | None) -> Dense:
        return Dense(_by_columns(_by_rows(self.values, rows), columns))

    def times(self, factor: float) -> Dense:
        return Dense(self.values.to(compute_dtype(self.values.dtype)) * factor)

    def embedded(self, rows: Rows, count: int) -> Dense:
        return Dense(_embedded(self.values, rows, count))

    def work(self) -> int:
        return self.values.numel()

    def bounds(self) -> Bounds:
        return (self.values,)


Additive = LowRank | Hadamard | Kronecker | Dense
"""A form of a change that does not depend on the weight it is added to."""


def product(factors: tuple[Tensor, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix of one or two factors: a for (a,), a @ b for (a, b)."""
    matrix = factors[0].to(device, dtype)
    return matrix @ factors[1].to(device, dtype) if len(factors) == 2 else matrix


def add_up(forms: Sequence[Additive], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The sum of at least one form as one matrix (O, K)."""
    total = forms[0].dense(dtype, device)
    for form in forms[1:]:
        total = total + form.dense(dtype, device)
    return total


def plus(weight: Tensor, forms: Sequence[Additive]) -> Tensor:
    """A float32 or float64 weight plus the sum of forms, in its shape."""
    if not forms:
        return weight
    first, *rest = forms
    if not isinstance(first, LowRank):
        total = shaped(add_up(forms, weight.dtype, weight.device), weight.shape)
        # In place, to save a copy of the weight's size, unless the sum may be a tensor that a layer holds, or
        # the weight a batch of weights under `torch.func.vmap`.
        return weight + total if isinstance(first, Dense) or by_torch_func() else total.add_(weight)
    # One operation, which keeps no product beside the sum.
    up, down = first.up.to(weight), first.down.to(weight)
    total = torch.addmm(weight.reshape(len(weight), -1), up, down, alpha=first.scale)
    if rest:
        total = total + add_up(rest, weight.dtype, weight.device)
    return shaped(total, weight.shape)


def reaches(forms: Sequence[Additive]) -> list[Reach]:
    """The bounds on the values of each form, with one pass over all factors and one wait for a device."""
    bounds = [form.bounds() for form in forms]
    held = [bound for each in bounds for bound in each if isinstance(bound, Tensor)]
    sizes = iter(largest_of(held))
    return [
        Reach(tuple(next(sizes) if isinstance(bound, Tensor) else bound for bound in each)) for each in bounds
    ]


def _bounds_of(factors: Sequence[Tensor]) -> Bounds:
    """The bounds of one factor, or of the product of two."""
    rank = (float(factors[1].shape[0]),) if len(factors) == 2 else ()
    return (*rank, *factors)


def _by_rows(matrix: Tensor, rows: Tensor | None) -> Tensor:
    return matrix if rows is None else matrix.to(rows) * rows[:, None]


def _by_columns(matrix: Tensor, columns: Tensor | None) -> Tensor:
    if columns is None:
        return matrix
    return matrix.to(columns) * columns.repeat_interleave(matrix.shape[1] // len(columns))


def _times(first: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The product value by value, where None stands for ones."""
    if first is None or other is None:
        return other if first is None else first
    return first.to(other) * other


def _embedded(matrix: Tensor, rows: Rows, count: int) -> Tensor:
    return torch.nn.functional.pad(matrix, (0, 0, rows[0], count - rows[1]))
