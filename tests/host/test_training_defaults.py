"""Short trainings with all defaults, of tiny models of every architecture that the host can train, and their
files in the host's own loader.

Most architectures are in `make soak`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, Patched, loaded_by_the_host, patcher
from torch import Tensor
from trainable import module, tiny

from tests.harness.inputs import FURTHER, INPUTS

pytestmark = pytest.mark.host

STEPS, ROWS, DRAWS = 25, 2, 8
ALWAYS = ("SD1.5", "Flux 1", "Wan 2.1 t2v", "Qwen-Image", "Z-Image", "LTX-Video")
GIVEN = (
    *(f"Wan {name}" for name in ("VACE", "camera", "HuMo", "S2V", "Animate", "SCAIL", "SCAIL 2", "causal")),
    *("Wan 2.1 i2v", "WanDancer", "HunyuanVideo 1.5", "LTX-2", "Boogu"),
)
"""Architectures that are given pictures, clips, sounds or poses, beside those of INPUTS."""


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.soak) for name in (*INPUTS, *GIVEN)],
)
def test_the_usual_rate_lowers_the_loss(host: Host, architecture: str, tmp_path: Path) -> None:
    """At fixed noise, after few steps with the rate, rank, layers and times that are usual for the model.

    The file gives the model this loss in the host.
    """
    training, ops = module(host, ""), host.ops
    model = tiny(architecture)
    latent, conds = {**INPUTS, **FURTHER}[architecture].make(ROWS)
    family, sampling = training.trained_family(model), model.model_sampling
    tokens = host.module("lycoris_nodes.host.training").tokens_of(model, latent.shape)

    def loss_of(session: Any, shares: Tensor | None) -> Tensor:
        """At the quantiles of the times that are given, or at random ones."""
        times = family.times.at(torch.rand(len(latent)) if shares is None else shares, tokens)
        sigma = training.sigma_at(sampling, times)
        seen = training.noised(sampling, sigma, torch.randn(latent.shape), latent)
        weight = training.weight_on_denoised(sampling, sigma)
        found = session.prediction(seen, sigma, conds)
        return (training.rows(weight, latent) * (found - latent).square()).mean()

    with training.opened(plain := patcher(model)) as session:
        evenly = ((torch.arange(DRAWS * len(latent)) + 0.5) / (DRAWS * len(latent))).split(len(latent))
        layers = {"preset": family.preset, "include": family.include}
        network = session.adapted(rank=family.rank, seed=0, **layers)
        options = ops.TrainOptions(steps=STEPS, lr=family.lr, warmup=0.05, bar=False, validate_every=STEPS)
        result = ops.train_network(
            network, [None], lambda _, shares: loss_of(session, shares), options, validation=evenly
        )
        network.save_weights(tmp_path / "file.safetensors", dialect="comfy")
    (_, before), (_, after) = result.history.validation
    assert len(result.history.losses) == STEPS and not result.history.skipped
    assert after < before, (before, after)

    losses: list[float] = []
    loaded = loaded_by_the_host(Patched(plain, None), tmp_path / "file.safetensors").model
    with training.opened(loaded) as session, torch.no_grad():
        for number, shares in enumerate(evenly):
            with host.module("lycoris_ops.maths.chance").Chance(0, "validation", number).drawn():
                losses.append(float(loss_of(session, shares)))
    assert sum(losses) / len(losses) == pytest.approx(after, rel=1e-5)
