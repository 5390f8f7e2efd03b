"""The learning rate of a training that names none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lycoris_ops as lyc
from lycoris_ops.train.optimisers import optimisers
from lycoris_ops.train.rates import rate_of, usual_rate


def test_a_rate_falls_with_width_and_rank() -> None:
    # 0.4 / (4096^(2/3) 32^(3/5)) = 0.4 / (256 * 8)
    assert rate_of("lora", [(4096, 4096)], 32) == pytest.approx(0.4 / 2048)
    # Of two layers the width is sqrt(16 * 256) = 64, of a convolution that of all its inputs.
    assert rate_of("lora", [(16, 16), (256, 64, 2, 2)], 1) == pytest.approx(0.4 / 16)
    lora = rate_of("lora", [(64, 64)], 4)
    assert rate_of("oft", [(64, 64)], 32) == pytest.approx(lora)
    assert rate_of("lokr", [(64, 64)], 2**20) == pytest.approx(lora * 10**0.5)
    assert rate_of("full", [(64, 64)], 4) == pytest.approx(lora / 10**0.5)


def test_a_training_without_a_rate_has_that_of_its_layers() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(256, 256), nn.LayerNorm(256)).requires_grad_(False)
    ranked = {"0": {"rank": 1}, "1": {"rank": 4}}
    network = lyc.create_lycoris(model, seed=0, overrides=ranked)
    # The mean of the logarithms, of width 16 at rank 1 and of width 256 at rank 4.
    expected = 0.4 / (16 ** (2 / 3) * 256 ** (2 / 3) * 4**0.6) ** 0.5
    assert usual_rate(network, optimisers()["adamw"]) == pytest.approx(expected)
    assert usual_rate(network, optimisers()["sgd"]) == optimisers()["sgd"].lr

    def loss(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return module(batch).sum()

    def rates(**options: float) -> list[float]:
        trainer = lyc.Trainer(network, loss, lyc.TrainOptions(steps=1, bar=False, **options))
        return [group["lr"] for group in trainer.optimiser.param_groups]

    assert rates() == pytest.approx([expected] * len(rates()))
    assert set(rates(lr=0.5)) == {0.5}
    # With LoRA+ the product of both rates stays that of the usual one.
    low, high = sorted(set(rates(lora_plus=16.0)))
    assert (low, high) == (pytest.approx(expected / 4), pytest.approx(expected * 4))
    assert set(rates(lr=0.5, lora_plus=16.0)) == {0.5, 8.0}
    network.restore()
