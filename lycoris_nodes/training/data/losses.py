"""How a difference between what a model predicts and its target becomes a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor


def _rounded(difference: Tensor, delta: float) -> Tensor:
    """sqrt(d^2 + delta^2) - delta: d^2 / (2 delta) near zero, and |d| - delta far from it."""
    return (difference.square() + delta**2).sqrt() - delta


LOSSES: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "l2": lambda d, delta: d.square(),
    # The pseudo-Huber loss, scaled as in kohya-ss/sd-scripts: d^2 near zero.
    "huber": lambda d, delta: 2 * delta * _rounded(d, delta),
    "smooth_l1": lambda d, delta: 2 * _rounded(d, delta),
    "l1": lambda d, delta: d.abs(),
}
"""The loss of each value, by name, given the difference d in the network's output and `delta`, above which a
difference counts less than its square."""
