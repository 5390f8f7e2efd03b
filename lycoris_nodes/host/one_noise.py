"""One noise for all pictures of a batch, so that they show only what else differs."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from comfy.k_diffusion.sampling import BrownianTreeNoiseSampler, default_noise_sampler
from comfy.samplers import KSAMPLER
from torch import Tensor


def like_the_first(noise: Tensor) -> Tensor:
    """Noise (n, ...) in which all pictures have the noise of the first."""
    return noise[:1].repeat(len(noise), *(1 for _ in noise.shape[1:]))


def with_one_noise(sampler: Any) -> Any:
    """A copy of the host's sampler in whose steps all pictures get the noise that a batch of one would get.

    A sampler that adds no noise in its steps is returned as it is, and so is another kind of sampler.
    """
    if not isinstance(sampler, KSAMPLER):
        return sampler
    step: Any = sampler.sampler_function
    if "noise_sampler" not in inspect.signature(step).parameters:
        return sampler

    def sample(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **more: Any) -> Any:
        if more.get("noise_sampler") is None and bool((sigmas > 0).any()):
            drawn = _noise_sampler(step.__name__, x[:1], sigmas, (extra_args or {}).get("seed"))
            more["noise_sampler"] = lambda *at: drawn(*at).repeat(len(x), *(1 for _ in x.shape[1:]))
        return step(model, x, sigmas, extra_args=extra_args, **more)

    found = copy.copy(sampler)
    found.sampler_function = sample
    return found


def _noise_sampler(name: str, x: Tensor, sigmas: Tensor, seed: int | None) -> Any:
    """The host's source of noise for the sampler of this name: a Brownian path only for DPM-Solver++ SDE."""
    if "dpmpp" in name and "sde" in name:
        low, high = sigmas[sigmas > 0].min(), sigmas.max()
        return BrownianTreeNoiseSampler(x, low, high, seed=seed, cpu="gpu" not in name)
    return default_noise_sampler(x, seed=seed)
