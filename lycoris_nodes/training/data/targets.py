"""What a network predicts, and the weight of its loss.

All models of the host return the denoised latent D. Trainers compute the loss of the network's own output F:
the noise, or a velocity. D is linear in F, so the two losses differ by a known weight:

    mean (F - target)^2 = w(sigma) * mean (D - x0)^2

Below, s is sigma, d the model's `sigma_data` and e the noise. The noised latent x is x0 + s e, or
s n e + (1 - s) x0 for "flow", where the scale n of the noise is mostly 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....lycoris_ops import TrainError
from ...host.sampling import predicted_by, time_to_sigma

LEAST_SIGMA = 1e-3
"""The smallest sigma trained at. Below it, rounding in float32 leaves too little of F in D."""


@dataclass(frozen=True)
class Parametrisation:
    """What a network predicts, with the weight of its loss.

    `weight` is w(s, d). `snr` is the ratio of signal power to noise power in the noised latent, given s and
    the scale of its noise.
    """

    name: str
    weight: Callable[[Tensor, float], Tensor]
    snr: Callable[[Tensor, float], Tensor] = lambda s, scale: (s * scale) ** -2
    predicts_noise: bool = False
    """Whether the target is the noise alone."""


def _edm(s: Tensor, d: float) -> Tensor:
    return (s**2 + d**2) / (s * d) ** 2


KINDS = {
    kind.name: kind
    for kind in (
        # D = x - s F, target e.
        Parametrisation("eps", lambda s, d: s**-2, predicts_noise=True),
        # D = x d^2/(s^2+d^2) - s d F/sqrt(s^2+d^2), target (d^2 e - s x0) / (d sqrt(s^2+d^2)).
        Parametrisation("v", _edm),
        # The same with the other sign of F (Karras et al., 2206.00364, table 1).
        Parametrisation("edm", _edm),
        # D = (x - s F)/sqrt(s^2+1), where x is the noised latent over sqrt(s^2+1).
        Parametrisation("v of a preserved variance", lambda s, d: (s**2 + 1) / s**2),
        # D = x - s F, target n e - x0.
        Parametrisation("flow", lambda s, d: s**-2, lambda s, n: ((1 - s) / (s * n)) ** 2),
        # D = (1-t) x - t F with t = s/(1+s), target e - x0.
        Parametrisation("flow of an exploding variance", lambda s, d: ((1 + s) / s) ** 2),
        Parametrisation("x0", lambda s, d: torch.ones_like(s)),
    )
}


def parametrisation_of(model_sampling: Any) -> Parametrisation:
    """What a model predicts. Raises TrainError if it is unknown, or not trained on noised latents."""
    if name := predicted_by(model_sampling):
        return KINDS[name]
    raise TrainError(
        "E-model-not-denoising", got=" ".join(kind.__name__ for kind in type(model_sampling).__mro__[1:3])
    )


def noised(model_sampling: Any, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
    """The noised latent (B, ...) as the model takes it, with one sigma for each row."""
    x = model_sampling.noise_scaling(sigma, noise, latent)
    if parametrisation_of(model_sampling) is KINDS["v of a preserved variance"]:
        # The host's function is for its samplers, which keep another scale.
        return x / (1 + rows(sigma, x) ** 2).sqrt()
    return x


def sigma_at(model_sampling: Any, time: Tensor) -> Tensor:
    """The sigma of each time, for this model. It is at least `LEAST_SIGMA`."""
    return time_to_sigma(model_sampling, time).clamp(min=LEAST_SIGMA)


def rows(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) in the shape (B, 1, ...), which broadcasts to a latent."""
    return values.view(-1, *(1 for _ in like.shape[1:]))


GAMMA = 5.0
"""The gamma of min-snr. 5 is the paper's."""

WEIGHTINGS = ("none", "min-snr", "debiased")


def weight_on_denoised(model_sampling: Any, sigma: Tensor, weighting: str = "none") -> Tensor:
    """The weight (B,) of the mean of (D - x0)^2 in each row.

    none: w(sigma), which makes the loss the plain error of F, as in most trainers. min-snr: min(SNR, 5) (Hang
    et al., 2303.09556, equation 7). debiased: w(sigma) / sqrt(SNR) where F is the noise (Yu et al.,
    2310.08442, equation 9), and w(sigma) / sqrt(SNR + 1) where it is a velocity, as in OneTrainer.
    """
    kind = parametrisation_of(model_sampling)
    raw = kind.weight(sigma, float(getattr(model_sampling, "sigma_data", 1.0)))
    snr = kind.snr(sigma, float(getattr(model_sampling, "noise_scale", 1.0)))
    if weighting == "min-snr":
        return snr.clamp(max=GAMMA)
    if weighting == "debiased":
        return raw / (snr if kind.predicts_noise else snr + 1).sqrt()
    return raw
