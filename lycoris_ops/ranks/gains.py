"""What a LoRA on some weight can gain from the gradient of it, and from where it starts.

The **gain** of a layer is the energy of the gradient that its first step can follow. At its start a LoRA
changes nothing: up is zero, and the rows of down are orthonormal. With G = dL/dW, dL/dup is G down^T, and no
down of r orthonormal rows gives it more energy than the r leading right singular vectors:

    gain = || G down^T ||^2 = sum_{j<=r} s_j^2

A short step lowers the loss L by the length of the step times the square root of the gain. A full difference
would gain ||G||^2, more than any other layer.

The **first step** is what an optimiser makes of it. In its first step Adam moves every value by the learning
rate, against the sign of its gradient (Kingma and Ba, "Adam", 1412.6980, algorithm 1 with t = 1). To first
order the loss falls by the learning rate times the sum of the absolute values of the gradient. With
G = U S V^T and down the first r rows of V^T, this sum is

    || dL/dup ||_1 = || U_r S_r ||_1 = sum_{j<=r} s_j ||u_j||_1

||u_j||_1 is at most the root of the number of outputs, and about sqrt(2 / pi) of that for a u_j of no
pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from ..algorithms.fitting import Delta, cumulative, running
from ..changes.forms import Dense
from ..maths.shapes import Shape, flat_shape


class Gradient(Delta):
    """A gradient as a change. Even singular values of zero count: few batches do not reach all directions."""

    @cached_property
    def significant(self) -> int:
        values = self.spectrum
        return len(values) if len(values) and float(values[0]) else 0


@dataclass(frozen=True, eq=False)
class Probed:
    """The measurements of one layer. Each tuple has a number for the ranks 1, 2, ..., and is empty for a
    vector and where no gradient came."""

    shape: Shape
    energy: float
    """||G||^2 of the mean gradient over the batches."""
    spectrum: Tensor
    """The leading singular values of G as a matrix (O, K), in descending order."""
    gains: tuple[float, ...] = ()
    first_steps: tuple[float, ...] = ()
    """How much the loss falls in Adam's first step, per learning rate."""
    down: Tensor | None = None
    """The leading right singular vectors (r, K), from which a layer starts."""

    def parameters(self, rank: int) -> int:
        """The number of values of a LoRA."""
        return rank * sum(flat_shape(self.shape))


def measured(values: Tensor, *, largest: int, seed: int) -> Probed:
    """What a LoRA of each rank up to `largest` can gain from the gradient (O, I, *kernel) of a weight."""
    shape = tuple(values.shape)
    flat = Dense(values.reshape(flat_shape(shape)))
    gradient = Gradient((flat,), shape, largest=largest, seed=seed, settled=0.0, device=values.device)
    energy = gradient.energy
    if values.ndim < 2:
        return Probed(shape, energy, torch.tensor([energy**0.5]))
    spectrum = gradient.spectrum.cpu()
    if not gradient.significant:
        return Probed(shape, energy, spectrum)
    left, values, right = gradient.triples
    # torch has no types for `linalg`.
    lengths = cast("Any", torch.linalg).vector_norm(left, 1, dim=0)
    # Copied, since a view would keep the whole decomposition in memory.
    down = right.to("cpu", copy=True).contiguous()
    return Probed(shape, energy, spectrum, cumulative(values), running(values * lengths), down)
