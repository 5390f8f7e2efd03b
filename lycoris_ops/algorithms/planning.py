"""What a kind must define so that plans can choose its layers: how they start from a gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..maths.shapes import Shape
from ..maths.tensors import norm
from .fitting import Fitted
from .training import Trained

if TYPE_CHECKING:
    from typing_extensions import Self


class Planned(Fitted, Trained):
    """A kind that plans can choose.

    The most that a layer can gain is the part of the gradient that its best fit keeps; see `ranks.offers`.
    `Offer.start` holds the nonzero factors of the start with the most gain.
    """

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
        """A layer of this rank (and `factor`, for LoKr) with the factors of `start`; its change is zero.

        Factors that `start` lacks are drawn with `seed`; if it is empty, all are drawn as in `init`. alpha is
        `scale` * rank.
        """


def first(vectors: Tensor, rank: int, shape: Sequence[int], *, seed: int) -> Tensor:
    """The first `rank` of these vectors (r, n) as a new tensor (rank, *shape).

    Random vectors of norm 1 take the place of missing vectors.
    """
    held = vectors[:rank]
    if rank > len(held):
        generator = torch.Generator().manual_seed(seed)
        extra = torch.randn(rank - len(held), held.shape[1], generator=generator)
        held = torch.cat([held, (extra / norm(extra, 1)).to(held)])
    return held.reshape(rank, *shape).clone()
