"""What a layer of some kind can gain from the gradient of a weight, and from where it starts.

The **gain** of a layer is the energy of the gradient that its first step can follow. At its start a layer
changes nothing, and some of its tensors, the trained ones, reach changes of the weight in a linear space T,
the tangent space. With G = dL/dW,

    gain = || projection of G on T ||^2.

A short step along the projection lowers the loss L by the length of the step times the square root of the
gain. A full difference would gain ||G||^2, more than any other layer. Every kind starts where its gain is
largest. The factors that are not zero there are orthonormal, so that the gradient of the others, at a scale
of 1, has just this energy, and gains of different kinds can be compared.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..maths.shapes import Shape
from ..maths.tensors import norm
from .fitting import Delta
from .training import Trained

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False, kw_only=True)
class Offer:
    """The layers of one kind that a weight may get: for each rank the gain and the number of parameters.

    A rank of None stands for a LoKr with a full second factor, which has no rank.
    """

    algorithm: str
    ranks: tuple[int | None, ...]
    gains: tuple[float, ...]
    parameters: tuple[int, ...]
    factor: int | None = None
    """The factor of LoKr, as `Lokr.init` takes it; None for kinds without one."""
    start: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What `Planned.started` needs: the factors that are not zero at the start, for the highest rank."""


class Planned(Trained):
    """A kind that plans choose from, by what its layers can gain from a gradient."""

    @classmethod
    @abstractmethod
    def offers(cls, gradient: Delta) -> tuple[Offer, ...]:
        """What layers of this kind can gain, at the start where they gain most; () where none suits."""

    @classmethod
    @abstractmethod
    def started(
        cls,
        start: Mapping[str, Tensor],
        shape: Shape,
        rank: int | None,
        scale: float,
        *,
        seed: int,
        factor: int | None = None,
    ) -> Self:
        """The layer of one rank (and `factor`, for LoKr) at the start of an offer, whose change is zero.

        Without a start it is one that needs no gradient, as in `init`. alpha is `scale` * rank. `seed` is for
        what the start leaves open.
        """


def cumulative(spectrum: Tensor) -> tuple[float, ...]:
    """The sums of the first 1, 2, ... squares: the gain of each rank from singular values."""
    # torch types no `tolist`.
    return tuple(cast("list[float]", cast("Any", spectrum.double().square().cumsum(0)).tolist()))


def first(vectors: Tensor, rank: int, shape: Sequence[int], *, seed: int) -> Tensor:
    """The first `rank` of these vectors (r, n) as a new tensor (rank, *shape).

    Random vectors of norm 1 make up for vectors that are not there.
    """
    held = vectors[:rank]
    if rank > len(held):
        generator = torch.Generator().manual_seed(seed)
        extra = torch.randn(rank - len(held), held.shape[1], generator=generator)
        held = torch.cat([held, (extra / norm(extra, 1)).to(held)])
    return held.reshape(rank, *shape).clone()
