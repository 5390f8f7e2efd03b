"""What a layer of each kind can gain from a weight's gradient, and where it starts.

The **gain** of a layer is the part of the gradient's energy that its first step can follow. At its start a
layer changes nothing, and to first order its tensors move the weight within a linear space T, the tangent
space. With G = dL/dW,

    gain = || projection of G on T ||^2.

A short step along the projection lowers the loss L by the length of the step times the square root of the
gain. A full difference would gain ||G||^2, more than any other layer. Every kind starts where its gain is
largest. The factors that are not zero there are orthonormal. So the gradient of the others, at a scale of 1,
has exactly this energy, and gains of different kinds can be compared.

This largest gain is the energy that the nearest layer of the kind keeps of G (`algorithms.fitting`). For LoRA
dL/dup is G down^T. Among down matrices with r orthonormal rows, the r leading right singular vectors give it
the most energy. For LoKr, with a w1 of norm 1 and w2 zero, dL/dw2 is the sum of the blocks of G weighted by
w1. It has most energy with the w1 of the nearest Kronecker product. A low-rank w2 starts from the left
singular vectors of this sum. With this w1 LoKr trains at LoRA's learning rate; from its usual start it needs
ten times as much.

The **first step** is what Adam can gain. Adam's first step moves every value by the learning rate, against
the sign of its gradient (Kingma and Ba, "Adam", 1412.6980, algorithm 1 with t = 1). To first order the loss
falls by the learning rate times the sum of the absolute values of the gradient. With G = U S V^T and down the
first r rows of V^T, this sum is

    || dL/dup ||_1 = || U_r S_r ||_1 = sum_{j<=r} s_j ||u_j||_1

for LoRA. ||u_j||_1 is at most the root of the number of outputs, and about sqrt(2 / pi) times that for a
random u_j. For LoKr with a full w2 the sum is ||w2||_1 of the nearest w1 (x) w2 with ||w1|| = 1. With a
low-rank w2 it is sum_{j<=r} s_j ||v_j||_1 over the singular triples of that w2. The sums of different kinds
can be compared, because all kinds train at one learning rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

from ..algorithms.fitting import Delta, Fitted, Offer, running
from ..maths.tensors import fetched


class Gradient(Delta):
    """A gradient as a change. All its singular values count as significant, zeros too.

    So ranks above the gradient's own are offered as well: a few batches do not reach all directions.
    """

    @cached_property
    def significant(self) -> int:
        values = self.spectrum
        return len(values) if len(values) and float(values[0]) else 0


def offers_of(kinds: Iterable[type[Fitted]], gradient: Gradient) -> tuple[Offer, ...]:
    """What layers of these kinds can gain from a gradient, on the CPU; () where none suits the weight."""
    offers = [offer for kind in kinds for offer in kind.fit(gradient)]
    starts = {id(factor): factor for offer in offers for factor in offer.start.values()}
    here = fetched(*(offer.sums for offer in offers if offer.sums is not None), *starts.values())
    # Several offers may share a start.
    moved = here[len(here) - len(starts) :]
    own = {key: factor.contiguous() for key, factor in zip(starts, moved, strict=True)}
    sums = iter(here)
    return tuple(
        replace(
            offer,
            make=None,
            sums=None,
            first_steps=() if offer.sums is None else running(next(sums).double()),
            start={name: own[id(factor)] for name, factor in offer.start.items()},
        )
        for offer in offers
    )
