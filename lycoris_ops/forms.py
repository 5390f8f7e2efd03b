"""Factored forms of a change: what a layer hands to the patch ops instead of a full-size delta.

Every form describes a matrix (O, K) with K = I * prod(kernel). Patching, merging and `delta` all
derive from it, so each formula stands once. Factors keep the dtype of their file; `scale` is
alpha / rank and never includes a strength.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """scale * up @ down, with up (O, r) and down (r, K)."""

    up: Tensor
    down: Tensor
    scale: float

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.scale * (self.up.to(device, dtype) @ self.down.to(device, dtype))


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


@dataclass(frozen=True)
class Kronecker:
    """scale * kron(w1, w2), with w1 (l, i), w2 (k, j * prod(kernel)), O = l * k and I = i * j.

    Each factor is one matrix or the two (a, b) whose product it is.
    """

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    scale: float

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        w1 = product(self.w1, dtype, device)
        return self.scale * torch.kron(w1, product(self.w2, dtype, device))


Form = LowRank | Hadamard | Kronecker


def product(factors: tuple[Tensor, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix that one or two factors stand for."""
    matrix = factors[0].to(device, dtype)
    return matrix @ factors[1].to(device, dtype) if len(factors) == 2 else matrix
