"""How far a patched weight is from the exact one, which is the sum of deltas in float64."""

from __future__ import annotations

import torch
from torch import Tensor

import lycoris_ops as lyc


def exact(weight: Tensor, pairs: list[tuple[lyc.Layer, float]]) -> Tensor:
    total = weight.double()
    for one, strength in pairs:
        total = total + strength * one.delta(weight.double())
    return total


def assert_one_rounding(patched: Tensor, base: Tensor, pairs: list[tuple[lyc.Layer, float]]) -> None:
    """At most half a unit in the last place away, plus what the accumulation may add to it."""
    wanted = exact(base, pairs)
    size = base.double().abs()
    for one, strength in pairs:
        size = size + abs(strength) * one.delta(base.double()).abs()
    wide = torch.float64 if patched.dtype == torch.float64 else torch.float32
    accumulation = (64 if wide == torch.float64 else 12) * torch.finfo(wide).eps * size.max()
    half_ulp = torch.finfo(patched.dtype).eps / 2 * wanted.abs()
    tiny = torch.finfo(patched.dtype).smallest_normal * torch.finfo(patched.dtype).eps
    assert torch.isfinite(patched).all()
    assert ((patched.double() - wanted).abs() <= half_ulp + accumulation + tiny).all()


def error_over_floor(patched: Tensor, base: Tensor, pairs: list[tuple[lyc.Layer, float]]) -> float:
    """The error of a patched weight over that of rounding the exact one once."""
    wanted = exact(base, pairs)
    floor = (wanted.to(base.dtype).double() - wanted).norm()
    return float((patched.double() - wanted).norm() / floor)
