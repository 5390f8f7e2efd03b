"""Notice when a training makes its model worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .tensors import copies

CHECKS, FEWEST = 20, 25
"""How often a training is checked, and the fewest steps between two checks: each costs a third of a step."""
MORE = 7
"""With how many more random numbers a loss that seems too high is computed again."""
TRIAL = 8
"""A training of fewer steps is only a trial, and not checked."""


class Rise:
    """Compares the loss of a step with the loss of the model alone, for the same batches and random numbers.

    Their ratio is free of the noise between the losses of different steps. It is compared with the ratio in
    the first step, since a training may begin from an adapter that has already changed the model.
    """

    def __init__(self, most: float | None, steps: int, parameters: Sequence[Tensor]) -> None:
        """`most` is the highest allowed ratio, as a multiple of the first one; None checks nothing."""
        self.most = most
        self.every = max(FEWEST, steps // CHECKS)
        self.last = steps
        self.first: float | None = None
        self.high: float | None = None
        """The factor by which the ratio had risen at the last check, if that was too much."""
        self._parameters = parameters
        self.good = self._copied()
        """The weights at the last check that found no rise."""

    def due(self, step: int) -> bool:
        if self.most is None or self.last < TRIAL:
            return False
        return step in (1, self.last) or step % self.every == 0

    def _copied(self) -> list[Tensor]:
        return [] if self.most is None else copies(self._parameters)

    def is_high(self, loss: float, alone: float) -> bool:
        """Whether `found` would count this ratio as too high."""
        if self.most is None or self.first is None or not (loss > 0 and alone > 0):
            return False
        return loss / alone > self.most * self.first

    def found(self, loss: float, alone: float) -> float | None:
        """Note both losses. Returns the factor by which their ratio has risen, if it was too high at two
        checks in a row."""
        # Some models' losses may be zero or negative.
        if not (loss > 0 and alone > 0 and math.isfinite(alone)):
            return None
        ratio = loss / alone
        if self.first is None:
            # A first ratio below 1 may be chance: it is of one batch with one noise.
            self.first = max(1.0, ratio)
        risen = ratio / self.first
        if self.most is None or risen <= self.most:
            self.high, self.good = None, self._copied()
            return None
        again = self.high is not None
        self.high = risen
        return risen if again else None

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "high": self.high}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as before the resume, from the present weights. States of older versions are empty."""
        self.first, self.high = state.get("first"), state.get("high")
        self.good = self._copied()
