"""Blend the outputs of an attention over the places of a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..changes.place import Places, Where
from ..maths.shapes import Shape
from . import compiled


class Blend:
    """base + sum of factor * (other - base), with one other output for each `Where` of `apart`.

    Outputs are (samples, tokens, channels) or (samples, heads, tokens, channels). `places` is called in each
    pass with (samples, tokens), and returns the places of these tokens. torch.compile does not look into the
    blend, so a new mask needs no new compilation.
    """

    def __init__(self, apart: Sequence[Where], places: Callable[[Shape], Places]) -> None:
        self.apart = tuple(apart)
        self._places = places
        self._number = compiled.numbered(self)

    def __call__(self, base: Tensor, others: Iterable[Tensor]) -> Tensor:
        total = base
        for index, other in zip(range(len(self.apart)), others, strict=True):
            if compiled.stands_apart(base, other):
                total = compiled.blend(total, base, other, self._number, index)
            else:
                total = self.blended(total, base, other, index)
        return total

    def blended(self, total: Tensor, base: Tensor, other: Tensor, index: int) -> Tensor:
        """total + factor * (other - base), with the factors of the `Where` with this index."""
        places = self._places((base.shape[0], base.shape[-2]))
        factors = self.apart[index].over(places, places.grid, base.dtype, base.device)[..., None]
        factors = factors[:, None] if base.ndim == 4 else factors
        # The first total is `base`.
        return torch.lerp(total, other + (total - base) if index else other, factors)
