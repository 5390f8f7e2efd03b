"""A change as one product of two small factors, where such factors exist."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..maths.tensors import kronecker
from .forms import Additive, Hadamard, Kronecker, LowRank


def low_rank(form: Additive, most: int) -> LowRank | None:
    """The same change as a LowRank of rank at most `most`; None where there is no exact one.

    A Hadamard product of ranks r1 and r2 has rank r1 * r2: its two factors are Khatri-Rao products, row-wise
    of w1_a and w2_a, column-wise of w1_b and w2_b. For a Kronecker product kron(A B, C D) = kron(A, C)
    kron(B, D). A factor that is one full matrix counts as that matrix times the identity.
    """
    if isinstance(form, LowRank):
        return form if len(form.down) <= most else None
    if isinstance(form, Hadamard):
        if len(form.w1_b) * len(form.w2_b) > most:
            return None
        w1_a, w1_b, w2_a, w2_b = (factor.float() for factor in (form.w1_a, form.w1_b, form.w2_a, form.w2_b))
        up = (w1_a[:, :, None] * w2_a[:, None, :]).flatten(1)
        down = (w1_b[:, None] * w2_b[None]).flatten(0, 1)
        return LowRank(up, down, form.scale)
    if isinstance(form, Kronecker):
        if _rank(form.w1) * _rank(form.w2) > most:
            return None
        (a, b), (c, d) = _pair(form.w1), _pair(form.w2)
        return LowRank(kronecker(a, c), kronecker(b, d), form.scale).scaled(form.rows, form.columns)
    return None


def joined(forms: Sequence[Additive], most: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """up (O, R) and down (R, K), in float32, whose product is the sum of the forms; None where R > `most`."""
    ups: list[Tensor] = []
    downs: list[Tensor] = []
    for form in forms:
        factors = low_rank(form, most)
        if factors is None:
            return None
        most -= len(factors.down)
        ups.append(factors.up.to(device, torch.float32) * factors.scale)
        downs.append(factors.down.to(device, torch.float32))
    return torch.cat(ups, 1), torch.cat(downs)


def _rank(factors: tuple[Tensor, ...]) -> int:
    return factors[0].shape[1] if len(factors) == 2 else min(factors[0].shape)


def _pair(factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Two matrices, in float32, with the same product as the one or two factors."""
    if len(factors) == 2:
        return factors[0].float(), factors[1].float()
    matrix = factors[0].float()
    rows, columns = matrix.shape
    if rows <= columns:
        return torch.eye(rows, device=matrix.device), matrix
    return matrix, torch.eye(columns, device=matrix.device)
