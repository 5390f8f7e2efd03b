"""What a kind says so that plans choose its layers: how they start from a gradient."""

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
    """A kind that plans choose from: its layers gain from a gradient what a fit keeps of the gradient.

    See `ranks.offers` for what gain means. The `start` of a fit has the factors that are not zero at the
    start from which a layer gains most.
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
        """The layer of one rank (and `factor`, for LoKr) at the start of a fit, whose change is zero.

        Without a start it is one that needs no gradient, as in `init`. alpha is `scale` * rank. `seed` is for
        what the start leaves open.
        """


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
