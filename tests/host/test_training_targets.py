"""What models of the host are trained on: the targets of their losses, and the times and their noise."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosting import Host, patcher
from torch import Tensor
from trainable import module, tiny

from tests.harness.inputs import INPUTS

pytestmark = pytest.mark.host

Target = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def _velocity(x0: Tensor, e: Tensor, x: Tensor, s: Tensor, d: float) -> Tensor:
    """v = alpha e - sigma x0 of the variance-preserving process (Salimans and Ho, 2202.00512)."""
    alpha = 1 / (1 + s**2).sqrt()
    return alpha * e - s * alpha * x0


def _preconditioned(x0: Tensor, e: Tensor, x: Tensor, s: Tensor, d: float) -> Tensor:
    """(x0 - c_skip x) / c_out (Karras et al., 2206.00364, equation 8)."""
    return (x0 - d**2 / (s**2 + d**2) * x) / (s * d / (s**2 + d**2).sqrt())


KINDS: dict[str, tuple[str, Target, float]] = {
    "EPS": ("ModelSamplingDiscrete", lambda x0, e, x, s, d: e, 1.0),
    "V_PREDICTION": ("ModelSamplingDiscrete", _velocity, 1.0),
    "EDM": ("ModelSamplingContinuousEDM", _preconditioned, 0.5),
    "CONST": ("ModelSamplingDiscreteFlow", lambda x0, e, x, s, d: e - x0, 1.0),
    "COSMOS_RFLOW": ("ModelSamplingCosmosRFlow", lambda x0, e, x, s, d: e - x0, 1.0),
    "V_PREDICTION_DDPM": ("ModelSamplingDiscrete", _velocity, 1.0),
    "X0": ("ModelSamplingDiscrete", lambda x0, e, x, s, d: x0, 1.0),
}
"""The host's classes of predictions, each with a class of noise, the paper's target and sigma_data."""


def sampling(kind: str, data: float = 1.0) -> Any:
    """The host's object that says how a model is noised and what it predicts."""
    import comfy.model_sampling as host

    if not hasattr(host, kind):
        pytest.skip(f"this host has no {kind}")
    made = type("Sampling", (getattr(host, KINDS[kind][0]), getattr(host, kind)), {})()
    if data != 1.0:
        made.sigma_data = data
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_of_the_denoised_loss_gives_the_loss_of_the_raw_target(host: Host, kind: str) -> None:
    targets = module(host, "targets")
    _, target, data = KINDS[kind]
    model = sampling(kind, data)
    torch.manual_seed(0)
    sigma = torch.tensor([0.03, 0.4, 0.9])
    latent, noise, output = (torch.randn(3, 4, 8, 8) for _ in range(3))
    s = sigma.view(-1, 1, 1, 1)
    x = targets.noised(model, sigma, noise, latent)
    denoised = model.calculate_denoised(sigma, output, x)
    raw = (output - target(latent, noise, x, s, data)).square().flatten(1).mean(1)
    weight = targets.weight_on_denoised(model, sigma)
    found = weight * (denoised - latent).square().flatten(1).mean(1)
    # 1e-5: at sigma 0.03, denoised - latent loses digits in float32.
    torch.testing.assert_close(found, raw, rtol=1e-5, atol=0)


def test_the_scale_of_the_noise_is_part_of_a_flows_target(host: Host) -> None:
    targets = module(host, "targets")
    model = sampling("CONST")
    if not hasattr(model, "set_noise_scale"):
        pytest.skip("this host has no scale of the noise")
    model.set_noise_scale(8.0)
    sigma = torch.tensor([0.3])
    latent, noise, output = (torch.randn(1, 4, 8, 8) for _ in range(3))
    x = targets.noised(model, sigma, noise, latent)
    weight = targets.weight_on_denoised(model, sigma)
    found = weight * (model.calculate_denoised(sigma, output, x) - latent).square().mean()
    torch.testing.assert_close(found[0], (output - (8 * noise - latent)).square().mean())


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION"])
def test_weightings_are_those_of_the_papers_on_the_raw_loss(host: Host, kind: str) -> None:
    targets = module(host, "targets")
    sigma = torch.tensor([0.05, 0.5, 1.0, 8.0])
    snr = sigma**-2
    raw = targets.weight_on_denoised(sampling(kind), sigma)
    minimum = targets.weight_on_denoised(sampling(kind), sigma, "min-snr") / raw
    clamped = torch.tensor([min(float(value), 5.0) for value in snr])
    torch.testing.assert_close(minimum, clamped / (snr if kind == "EPS" else snr + 1))
    debiased = targets.weight_on_denoised(sampling(kind), sigma, "debiased") / raw
    torch.testing.assert_close(debiased, (snr if kind == "EPS" else snr + 1) ** -0.5)


def test_times_have_the_distribution_that_is_asked_for(host: Host) -> None:
    times = host.module("lycoris_nodes.host.families.times")
    flux = host.module("lycoris_nodes.host.families").family_named(["Flux"]).times
    shares = (torch.arange(2000) + 0.5) / 2000
    torch.manual_seed(0)
    for made, reference in (
        (times.Times(), torch.rand),
        (times.Times("logit-normal", 0.3), lambda n: torch.sigmoid(0.3 + torch.randn(n))),
        (times.Times("logit-normal", shift=3.0), lambda n: shifted(torch.sigmoid(torch.randn(n)), 3.0)),
        (times.Times(shift=flux.shift), lambda n: shifted(torch.rand(n), math.exp(0.5))),
    ):
        drawn = reference(200_000).sort().values
        found = made.at(shares, 256)
        wanted = drawn[(shares * len(drawn)).long()]
        assert (found - wanted).abs().max() < 0.02, made
        assert ((found > 0) & (found < 1)).all()


def shifted(time: Tensor, shift: float) -> Tensor:
    return shift * time / (1 + (shift - 1) * time)


def test_the_shift_by_the_size_of_a_picture_is_that_of_flux(host: Host) -> None:
    found = host.module("lycoris_nodes.host.training")
    shift = host.module("lycoris_nodes.host.families").family_named(["Flux"]).times.shift.shift
    assert math.log(shift(256)) == pytest.approx(0.5) and math.log(shift(4096)) == pytest.approx(1.15)
    # 1024 pixels are 128 values of the latent, which are 64 patches a side.
    assert found.tokens_of(tiny("Flux 1"), (1, 16, 128, 128)) == 4096
    assert found.tokens_of(tiny("Wan 2.1 t2v"), (1, 16, 3, 64, 32)) == 3 * 32 * 16


def test_a_time_is_in_the_models_own_clock_without_the_shift_of_its_sampler(host: Host) -> None:
    times = module(host, "targets")
    time = torch.tensor([0.0, 0.25, 0.5, 0.9])
    flux = tiny("Flux 1").model_sampling
    assert flux.shift != 0
    assert torch.equal(times.sigma_at(flux, time), time.clamp(min=1e-3))
    wan = tiny("Wan 2.1 t2v").model_sampling
    assert wan.shift == 8.0 and torch.equal(times.sigma_at(wan, time), time.clamp(min=1e-3))
    discrete = tiny("SD1.5").model_sampling
    assert torch.equal(times.sigma_at(discrete, time), discrete.sigmas[[0, 250, 500, 900]])
    assert torch.equal(discrete.timestep(times.sigma_at(discrete, time)), torch.tensor([0, 250, 500, 900]))
    cosmos = sampling("COSMOS_RFLOW")
    torch.testing.assert_close(cosmos.timestep(times.sigma_at(cosmos, time[1:])), time[1:])
    assert times.sigma_at(cosmos, torch.ones(1)) == cosmos.sigma_max


@pytest.mark.parametrize("architecture", INPUTS)
def test_every_model_has_a_family_whose_times_it_can_be_noised_at(host: Host, architecture: str) -> None:
    targets = module(host, "targets")
    model = tiny(architecture)
    family = module(host, "families").trained_family(model)
    time = family.times.at(torch.tensor([0.0, 1e-4, 0.5, 1.0]), 256)
    sigma = targets.sigma_at(model.model_sampling, time)
    assert (sigma > 0).all() and sigma.isfinite().all() and (sigma.diff() >= 0).all()
    weight = targets.weight_on_denoised(model.model_sampling, sigma)
    assert weight.isfinite().all() and (weight > 0).all()
    if architecture in NAMED:
        assert family.name == NAMED[architecture]


def test_a_shift_that_is_not_given_is_that_of_the_family(host: Host) -> None:
    settings = importlib.import_module(f"{host.pack.__name__}.lycoris_nodes.training.node.settings")
    flux = host.module("lycoris_nodes.host.families").family_named(["Flux"])
    for times, shift, distribution, wanted in (
        ("auto", 0.0, "logit-normal", flux.times.shift),
        ("uniform", 0.0, "uniform", flux.times.shift),
        ("auto", 2.0, "logit-normal", 2.0),
        ("uniform", 2.0, "uniform", 2.0),
    ):
        asked = SimpleNamespace(times=times, shift=shift, expert="all", model=SimpleNamespace(model=None))
        made = settings.times_of(asked, flux)
        assert (made.distribution, made.shift) == (distribution, wanted)


@pytest.mark.parametrize("distribution", ["uniform", "logit-normal"])
@pytest.mark.parametrize("between", [(0.875, 1.0), (0.0, 0.875), (0.2, 0.6)])
def test_times_between_two_are_as_likely_as_among_all(
    host: Host, distribution: str, between: tuple[float, float]
) -> None:
    """The reference is all times without those that lie outside."""
    times = module(host, "").Times(distribution, 0.5, 3.0)
    shares = (torch.arange(400_000) + 0.5) / 400_000
    every = times.at(shares, 100)
    wanted = every[(every >= between[0]) & (every <= between[1])]
    found = replace(times, between=between).at((torch.arange(len(wanted)) + 0.5) / len(wanted), 100)
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-5)
    with pytest.raises(host.ops.TrainError, match="between two numbers of 0 to 1"):
        replace(times, between=between[::-1])


@pytest.mark.parametrize(
    ("architecture", "name", "choice", "wanted"),
    [
        ("Wan 2.1 t2v", "wan2.2_t2v_low_noise_14B_fp8_scaled", "auto", (0.0, 0.875)),
        ("Wan 2.1 i2v", "wan2.2_i2v_high_noise_14B_fp16", "auto", (0.9, 1.0)),
        ("Wan 2.1 i2v", "wan2.2_i2v_high_noise_14B_fp16", "all", (0.0, 1.0)),
        ("Wan 2.1 t2v", "wan2.1_t2v_14B", "auto", (0.0, 1.0)),
        ("Wan 2.1 t2v", "wan2.1_t2v_14B", "low noise", (0.0, 0.875)),
        ("Wan 2.2 5B", "wan2.2_ti2v_5B_low_noise", "auto", (0.0, 1.0)),
        ("SD1.5", "high_noise", "auto", (0.0, 1.0)),
        # A loader without arguments.
        ("Wan 2.1 t2v", "", "auto", (0.0, 1.0)),
    ],
)
def test_an_expert_is_trained_at_its_own_times(
    host: Host, architecture: str, name: str, choice: str, wanted: tuple[float, float]
) -> None:
    experts = host.module("lycoris_nodes.training.node.experts")
    model = patcher(tiny(architecture))
    model.cached_patcher_init = (None, (f"models/{name}.safetensors",) if name else ())
    expert, _ = experts.trained_expert(choice, model, None)
    assert experts.times_of_expert(module(host, "").Times(), expert, model).between == wanted
    if architecture in ("Wan 2.2 5B", "SD1.5"):
        with pytest.raises(host.ops.TrainError, match="not one of two experts"):
            experts.trained_expert("high noise", model, None)


@pytest.mark.parametrize(
    ("architecture", "rate"),
    [("HunyuanVideo", 24), ("HunyuanImage 2.1", None), ("Cosmos-Predict2", None), ("LTX-2", 25)],
)
def test_a_model_of_pictures_has_no_frame_rate(host: Host, architecture: str, rate: int | None) -> None:
    """Its configuration derives from a video model's, or its class is a video model's."""
    assert host.module("lycoris_nodes.host.families").family_of(tiny(architecture)).frame_rate == rate


NAMED = {
    "SD1.5": "Stable Diffusion",
    "SDXL": "SDXL",
    "SD3.5": "Stable Diffusion 3",
    "Flux 1": "Flux",
    "Flux 2": "Flux 2",
    "Chroma Radiance": "Chroma Radiance",
    "Qwen-Image": "Qwen-Image",
    "Lumina 2": "Lumina 2",
    "Z-Image": "Z-Image",
    "Wan 2.2 5B": "Wan",
    "HunyuanVideo": "HunyuanVideo",
    "HunyuanImage 2.1": "HunyuanImage 2.1",
    "LTX-Video": "LTX-Video",
    "Cosmos-Predict2": "Cosmos-Predict2",
    "Anima": "Anima",
    "ACE-Step 1.5": "ACE-Step 1.5",
    "Stable Cascade C": "other models",
    "AuraFlow": "other flow models",
}
