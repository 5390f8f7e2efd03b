"""Factored forms of a change: what a layer hands to the patch ops instead of a full-size delta.

Every form but `Dependent` describes a matrix (O, K) with K = I * prod(kernel). Patching, merging and
`delta` all derive from it, so each formula stands once. Factors keep the dtype of their file; `scale`
is alpha / rank and never includes a strength. `rows` gives the form of some rows alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..algorithms.base import Layer


@dataclass(frozen=True)
class LowRank:
    """scale * up @ down, with up (O, r) and down (r, K)."""

    up: Tensor
    down: Tensor
    scale: float

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.scale * (self.up.to(device, dtype) @ self.down.to(device, dtype))

    def rows(self, start: int, stop: int) -> LowRank:
        return replace(self, up=self.up[start:stop])


@dataclass(frozen=True)
class Hadamard:
    """scale * (w1_a @ w1_b) * (w2_a @ w2_b), with w?_a (O, r) and w?_b (r, K)."""

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    scale: float

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        first = self.w1_a.to(device, dtype) @ self.w1_b.to(device, dtype)
        return self.scale * first * (self.w2_a.to(device, dtype) @ self.w2_b.to(device, dtype))

    def rows(self, start: int, stop: int) -> Hadamard:
        return replace(self, w1_a=self.w1_a[start:stop], w2_a=self.w2_a[start:stop])


@dataclass(frozen=True)
class Kronecker:
    """scale * kron(w1, w2), with w1 (l, i), w2 (k, j * prod(kernel)), O = l * k and I = i * j.

    Each factor is one matrix or the two (a, b) whose product it is. `window` is the range of rows
    meant, None for all: it need not fall between the blocks of k rows.
    """

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    scale: float
    window: tuple[int, int] | None = None

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        w1, w2 = product(self.w1, dtype, device), product(self.w2, dtype, device)
        start, stop = self.window or (0, len(w1) * len(w2))
        first = start // len(w2)
        blocks = torch.kron(w1[first : -(-stop // len(w2))], w2)
        return self.scale * blocks[start - first * len(w2) : stop - first * len(w2)]

    def rows(self, start: int, stop: int) -> Kronecker:
        offset = self.window[0] if self.window else 0
        return replace(self, window=(offset + start, offset + stop))


@dataclass(frozen=True)
class Full:
    """A change that is not factored, as (O, K)."""

    values: Tensor

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.values.to(device, dtype)

    def rows(self, start: int, stop: int) -> Full:
        return Full(self.values[start:stop])


@dataclass(frozen=True)
class Sparse:
    """values[n] at row[n], column[n], and zero elsewhere; the last rows and columns may be empty."""

    row: Tensor
    column: Tensor
    values: Tensor
    shape: tuple[int, int]

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        dense = torch.zeros(self.shape, dtype=dtype, device=device)
        places = (self.row.to(device), self.column.to(device))
        return dense.index_put_(places, self.values.to(device, dtype), accumulate=True)

    def rows(self, start: int, stop: int) -> Sparse:
        kept = (self.row >= start) & (self.row < stop)
        return Sparse(
            self.row[kept] - start, self.column[kept], self.values[kept], (stop - start, self.shape[1])
        )


@dataclass(frozen=True)
class Dependent:
    """A change that depends on the weight it meets: only the layer itself can state it.

    `file` and `key` say where it is from, since what is wrong with it may show only then.
    """

    layer: Layer
    file: str | None = None
    key: str | None = None

    def rows(self, start: int, stop: int) -> Dependent:
        return replace(self, layer=self.layer.rows(start, stop))


Additive = LowRank | Hadamard | Kronecker | Full | Sparse
"""Forms that are the same whatever weight they are added to."""

Form = Additive | Dependent


def product(factors: tuple[Tensor, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix that one or two factors stand for."""
    matrix = factors[0].to(device, dtype)
    return matrix @ factors[1].to(device, dtype) if len(factors) == 2 else matrix
