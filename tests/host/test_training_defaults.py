"""Short trainings with all defaults, of tiny models of every architecture that the host can train.

Most architectures are in `make soak`.
"""

from __future__ import annotations

import pytest
import torch
from hosting import Host, patcher
from torch import Tensor
from trainable import module, tiny

from tests.harness import zoo
from tests.harness.inputs import INPUTS

pytestmark = pytest.mark.host

STEPS, ROWS, DRAWS = 25, 2, 8
ALWAYS = ("SD1.5", "Flux 1", "Wan 2.1 t2v", "Qwen-Image", "Z-Image", "LTX-Video")


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.soak) for name in INPUTS],
)
def test_the_usual_rate_lowers_the_loss(host: Host, architecture: str) -> None:
    """At fixed noise, after few steps with the rate, rank, layers and times that are usual for the model."""
    if not zoo.supported(architecture):
        pytest.skip("an older host does not have it")
    training, ops = module(host, ""), host.ops
    model = tiny(architecture)
    latent, conds = INPUTS[architecture].make(ROWS)
    family, sampling = training.family_of(model), model.model_sampling
    with training.opened(patcher(model)) as session:
        tokens = host.module("lycoris_nodes.host.training").tokens_of(model, latent.shape)

        def loss(_: object, shares: Tensor | None) -> Tensor:
            """At the quantiles of the times that are given, or at random ones."""
            times = family.times.at(torch.rand(len(latent)) if shares is None else shares, tokens)
            sigma = training.sigma_at(sampling, times)
            seen = training.noised(sampling, sigma, torch.randn(latent.shape), latent)
            weight = training.weight_on_denoised(sampling, sigma)
            found = session.prediction(seen, sigma, conds)
            return (training.rows(weight, latent) * (found - latent).square()).mean()

        evenly = ((torch.arange(DRAWS * len(latent)) + 0.5) / (DRAWS * len(latent))).split(len(latent))
        network = session.adapted(rank=family.rank, preset=family.preset, seed=0)
        options = ops.TrainOptions(steps=STEPS, lr=family.lr, warmup=0.05, bar=False, validate_every=STEPS)
        result = ops.train_network(network, [None], loss, options, validation=evenly)
    (_, before), (_, after) = result.history.validation
    assert len(result.history.losses) == STEPS and not result.history.skipped
    assert after < before, (before, after)
