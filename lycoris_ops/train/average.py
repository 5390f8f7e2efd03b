"""An exponential moving average of the trained tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .tensors import copies, move_towards


class Average:
    """average <- d average + (1 - d) weights after each step; in step n, d = min(decay, (1 + n) / (10 + n)).

    It is of the weights' own dtype, float32: bfloat16 would not hold so small a change.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.tensors = copies(parameters)

    def update(self, parameters: Sequence[nn.Parameter], step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        move_towards(self.tensors, parameters, 1 - decay)
