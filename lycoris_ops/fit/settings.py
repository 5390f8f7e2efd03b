"""The settings of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch

from ..algorithms import ALGORITHMS, declaring
from ..algorithms.fitting import Fitted
from ..devices import check_device
from ..errors import LycorisError, PlanError
from ..files.dtypes import DTYPE_NAMES, FLOATS
from ..ranks.sizes import Rank, Size, check_size

ANY, SAME = "auto", "same"
FITTED: tuple[str, ...] = tuple(
    # Without norm, which is no choice: the weights of norms always get it.
    name
    for name, kind in declaring(Fitted).items()
    if not kind.table.for_norms
)
"""The kinds that a change can become."""
LARGEST = 128
"""The highest rank that is looked at in a dense change, unless a size asks for more."""


class Making(TypedDict, total=False):
    """How layers are made.

    - `dtype` is the tensors' dtype; None keeps each source's.
    - `factor` is LoKr's, from 1, or -1 for the most even split (see `maths.shapes.factorization`); None
      tries several. `tucker` gives convolutions a Tucker core.
    - `largest` is the highest rank of a layer. None takes it from the size, or else LARGEST.
    - `device` is where they are computed, and `seed` is the seed of random bases.
    """

    dtype: torch.dtype | None
    factor: int | None
    tucker: bool
    largest: int | None
    seed: int
    device: torch.device | str


@dataclass(frozen=True)
class FitSettings:
    """The size and the kind of the layers to make, and how they are made (see `Making`).

    The algorithm "auto" takes for each layer the kind that keeps most for its bytes, and "same" the layer's
    own kind. `Size` explains the size "auto".

    Raises LycorisError for an unknown or unsuited algorithm, dtype or device, and PlanError for an impossible
    size, `largest` or `factor`.
    """

    size: Size
    algorithm: str = "lora"
    dtype: torch.dtype | None = None
    factor: int | None = None
    tucker: bool = False
    largest: int | None = None
    seed: int = 0
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        check_size(self.size)
        if self.algorithm not in (*FITTED, ANY, SAME):
            raise LycorisError(
                "E-kind-not-fitted" if self.algorithm in ALGORITHMS else "E-fit-algorithm-unknown",
                got=str(self.algorithm),
                expected=", ".join((*FITTED, ANY, SAME)),
            )
        if self.dtype is not None and DTYPE_NAMES.get(self.dtype) not in FLOATS:
            raise LycorisError("E-adapter-dtype-unknown", got=str(self.dtype), expected=", ".join(FLOATS))
        for name, value, least in (("largest", self.largest, 1), ("factor", self.factor, -1)):
            if value is not None and (type(value) is not int or value < least or value == 0):
                even = ", or -1 for the most even split" if least < 0 else ""
                raise PlanError("E-whole-number-from-1", name=name, even=even, got=repr(value))
        check_device(self.device)

    @property
    def rank(self) -> int | None:
        """The rank of every layer, at most `largest`; None where the size is no rank."""
        if not isinstance(self.size, Rank):
            return None
        return self.size.rank if self.largest is None else min(self.size.rank, self.largest)

    @property
    def never_larger(self) -> bool:
        """Whether layers of any kind may stay as they are, and none gets larger.

        The size "auto" promises this, and so does the algorithm "auto".
        """
        return self.size == "auto" or self.algorithm == ANY

    @property
    def most(self) -> int:
        """The highest rank that is looked at first."""
        return self.rank or self.largest or LARGEST
