"""Losses of the difference between a prediction and its target."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor


def _rounded(difference: Tensor, delta: float) -> Tensor:
    """sqrt(d^2 + delta^2) - delta: d^2 / (2 delta) near zero, and |d| - delta far from it."""
    return (difference.square() + delta**2).sqrt() - delta


LOSSES: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "l2": lambda d, delta: d.square(),
    "huber": lambda d, delta: 2 * delta * _rounded(d, delta),
    "smooth_l1": lambda d, delta: 2 * _rounded(d, delta),
    "l1": lambda d, delta: d.abs(),
}
"""Losses of single values by name, given the difference d in the network's output and `delta` above 0.

l2: d^2. huber (pseudo-Huber): 2 delta (sqrt(d^2 + delta^2) - delta), which is d^2 near zero and 2 delta |d|
far from it. smooth_l1: the same divided by delta. l1: |d|. Source of both: kohya-ss/sd-scripts.
"""
