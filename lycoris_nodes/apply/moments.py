"""Which moment of the sampling a sigma is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ...lycoris_ops import Moment

HALVINGS = 24
"""How often the time is halved in which a sigma is searched: to 6e-8 of the whole."""


def moment_of(sampling: Any, sigma: float, sigmas: Sequence[float]) -> Moment:
    """The moment at a sigma, by the host's `model_sampling` and the sigmas of the steps of this run.

    Without sigmas, as where a model is called outside a run, both clocks are that of the diffusion.
    """
    diffusion = _diffusion(sampling, sigma)
    return Moment(diffusion, _steps(sigma, sigmas) if len(sigmas) > 1 else diffusion)


def _diffusion(sampling: Any, sigma: float) -> float:
    """The least percent whose sigma is not above this one, by halves: each kind of sampling falls with it."""
    if sampling.percent_to_sigma(0.0) <= sigma:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if float(sampling.percent_to_sigma(middle)) <= sigma:
            high = middle
        else:
            low = middle
    return high


def _steps(sigma: float, sigmas: Sequence[float]) -> float:
    """The share of the steps that the run has done; between the sigmas of two it goes with the sigma."""
    count = len(sigmas) - 1
    for step, (now, following) in enumerate(pairwise(sigmas)):
        if sigma >= now:
            return step / count
        if sigma > following:
            return (step + (now - sigma) / (now - following)) / count
    return 1.0
