"""Give all pictures of a batch the same noise, so that they show only what else differs between them."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

from comfy.k_diffusion.sampling import BrownianTreeNoiseSampler, default_noise_sampler
from comfy.samplers import KSAMPLER
from torch import Tensor

PASSES_ON = ("dpm_adaptive_function",)
"""The host's samplers that take `noise_sampler` and pass it on, but do not name it in their signature."""


def like_the_first(noise: Tensor) -> Tensor:
    """Noise (n, ...) in which all pictures have the noise of the first."""
    return noise[:1].repeat(len(noise), *(1 for _ in noise.shape[1:]))


def with_one_noise(sampler: Any) -> Any:
    """A copy of the sampler that gives all pictures the noise of a batch of one.

    A sampler that draws no noise, or is not the host's own, is returned as it is.
    """
    if not isinstance(sampler, KSAMPLER):
        return sampler
    step: Any = sampler.sampler_function
    name, module = getattr(step, "__name__", ""), getattr(step, "__module__", None) or ""
    if not module.startswith("comfy"):
        return sampler
    in_steps = name in PASSES_ON or "noise_sampler" in inspect.signature(step).parameters
    # With this option a sampler draws new noise for what lies outside the noise mask.
    outside = bool(sampler.inpaint_options.get("random"))
    if not (in_steps or outside):
        return sampler

    @functools.wraps(step)
    def sample(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **more: Any) -> Any:
        if outside:
            model.noise = like_the_first(model.noise)
        if in_steps and more.get("noise_sampler") is None and bool((sigmas > 0).any()):
            drawn = _noise_sampler(name, x[:1], sigmas, (extra_args or {}).get("seed"))

            def for_all(*at: Any, **named: Any) -> Tensor:
                return drawn(*at, **named).repeat(len(x), *(1 for _ in x.shape[1:]))

            more["noise_sampler"] = for_all
        return step(model, x, sigmas, extra_args=extra_args, **more)

    copied = copy.copy(sampler)
    copied.sampler_function = sample
    return copied


def _noise_sampler(name: str, x: Tensor, sigmas: Tensor, seed: int | None) -> Any:
    """The noise sampler that the host's sampler of this name has by default.

    For DPM-Solver++ SDE it follows a Brownian path, for all others each step has noise of its own.
    """
    if "dpmpp" in name and "sde" in name:
        low, high = sigmas[sigmas > 0].min(), sigmas.max()
        return BrownianTreeNoiseSampler(x, low, high, seed=seed, cpu="gpu" not in name)
    return default_noise_sampler(x, seed=seed)
