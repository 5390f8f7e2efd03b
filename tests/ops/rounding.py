"""The error of a patched weight. The exact weight is W + the sum of strength * delta(W), in float64."""

from __future__ import annotations

import torch
from torch import Tensor

import lycoris_ops as lyc


def exact(weight: Tensor, pairs: list[tuple[lyc.Layer, float]]) -> Tensor:
    """The exact weight, in float64. Every delta is that of the unchanged weight."""
    total = weight.double()
    for one, strength in pairs:
        total = total + strength * one.delta(weight.double())
    return total


def assert_one_rounding(patched: Tensor, base: Tensor, pairs: list[tuple[lyc.Layer, float]]) -> None:
    """Assert that no value is further from the exact one than one rounding and the accumulation allow.

    One rounding is half a unit in the last place. The accumulation is in float32 (float64 for a float64
    weight); its bound is relative to the largest sum of the magnitudes that are added up.
    """
    wanted = exact(base, pairs)
    size = base.double().abs()
    for one, strength in pairs:
        size = size + abs(strength) * one.delta(base.double()).abs()
    wide = torch.float64 if patched.dtype == torch.float64 else torch.float32
    accumulation = (64 if wide == torch.float64 else 12) * torch.finfo(wide).eps * size.max()
    half_ulp = torch.finfo(patched.dtype).eps / 2 * wanted.abs()
    # Below the smallest normal number the distance between neighbours stays the same.
    tiny = torch.finfo(patched.dtype).smallest_normal * torch.finfo(patched.dtype).eps
    assert torch.isfinite(patched).all()
    assert ((patched.double() - wanted).abs() <= half_ulp + accumulation + tiny).all()


def error_over_floor(patched: Tensor, base: Tensor, pairs: list[tuple[lyc.Layer, float]]) -> float:
    """The error of a patched weight, over the error of rounding the exact one once: 1 is the best there is.

    Both errors are norms over the whole weight.
    """
    wanted = exact(base, pairs)
    floor = (wanted.to(base.dtype).double() - wanted).norm()
    return float((patched.double() - wanted).norm() / floor)
