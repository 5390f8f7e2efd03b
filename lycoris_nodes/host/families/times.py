"""The times of the noise schedule at which a model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ....lycoris_ops import TrainError


@dataclass(frozen=True)
class ByTokens:
    """A shift exp(mu) by the size of the picture: mu is linear in the number of tokens.

    It is `low` at `few` tokens and `high` at `many`.
    """

    low: float
    high: float
    few: int
    many: int

    def shift(self, tokens: int) -> float:
        """exp(mu) for a picture of so many tokens."""
        return math.exp(self.low + (self.high - self.low) * (tokens - self.few) / (self.many - self.few))


@dataclass(frozen=True)
class Times:
    """How times t from 0 (data) to 1 (noise) are drawn, counted as in the model's own training.

    uniform: u. logit-normal: u = sigmoid(mean + z) with z normal (Esser et al., 2403.03206, equation 19).
    Some trainers call it sigmoid. Then the shift moves times towards noise, which suits pictures of a higher
    resolution: t = a u / (1 + (a - 1) u) (equation 23).

    Raises TrainError for a shift that is not above 0, and for `between` out of order or outside 0 to 1.
    """

    distribution: str = "uniform"
    mean: float = 0.0
    shift: float | ByTokens = 1.0
    between: tuple[float, float] = (0.0, 1.0)
    """The lowest and the highest time. Between them the distribution keeps its shape."""

    def __post_init__(self) -> None:
        if not isinstance(self.shift, ByTokens) and not self.shift > 0:
            raise TrainError("E-shift-not-positive", got=self.shift)
        if not 0 <= self.between[0] < self.between[1] <= 1:
            raise TrainError("E-times-out-of-range", key="between", got=str(self.between))

    def at(self, shares: Tensor, tokens: int) -> Tensor:
        """The times at these quantiles of the distribution. Evenly spaced ones suit a validation."""
        a = self.shift.shift(tokens) if isinstance(self.shift, ByTokens) else self.shift
        least, most = (self._below(time, a) for time in self.between)
        u = least + (most - least) * shares.double()
        if self.distribution != "uniform":
            u = torch.sigmoid(self.mean + torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12)))
        return (a * u / (1 + (a - 1) * u)).float()

    def _below(self, time: float, a: float) -> float:
        """The share of times below `time`, with the shift a."""
        u = time / (a - (a - 1) * time)
        if self.distribution == "uniform":
            return u
        return float(torch.special.ndtr(torch.tensor(u, dtype=torch.float64).logit() - self.mean))


DISTRIBUTIONS = ("uniform", "logit-normal")
