"""Short trials of several plans."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.train.trials import try_plans


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.Dropout(0.1), nn.Tanh(), nn.Linear(24, 4))


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.mse_loss(module(batch[0]), batch[1])


def data(seed: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Outputs of another network, which the first is to be taught."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(9)
    teacher = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 4))
    inputs = [torch.randn(32, 12, generator=generator) for _ in range(count)]
    return [(x, teacher(x).detach()) for x in inputs]


@pytest.fixture(scope="module")
def plans() -> dict[str, lyc.Plan]:
    probe = lyc.probe(model(), data(1, 4), loss)
    return {
        "one rank": lyc.plan_ranks(probe, size=lyc.Rank(1)),
        "four ranks": lyc.plan_ranks(probe, size=lyc.Rank(4)),
    }


def test_the_best_plan_goes_furthest_at_its_best_rate(plans: dict[str, lyc.Plan]) -> None:
    net = model()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    given: Any = (net, plans, data(1, 6), data(2, 2), loss)
    # The first rate learns nothing, and the last one ends in NaN.
    found = try_plans(*given, rates=(1e-7, 1e-2, 1e30), steps=15, rounds=2)
    assert (found.best.name, found.best.lr) == ("four ranks", 1e-2) and found.plan is plans["four ranks"]
    assert found.best.loss < found.start and found.best.steps == 45
    assert [trial.steps for trial in found.trials[:2]] == [45, 45] and found.trials[-1].steps <= 15
    assert found.steps == sum(trial.steps for trial in found.trials)
    assert all(not math.isfinite(trial.loss) for trial in found.trials if trial.lr == 1e30)
    assert str(found).splitlines()[1].split()[:2] == ["four", "ranks"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert try_plans(*given, rates=(1e-7, 1e-2, 1e30), steps=15, rounds=2).trials[:4] == found.trials[:4]


def test_bad_use_is_an_error(plans: dict[str, lyc.Plan]) -> None:
    with pytest.raises(lyc.PlanError, match="nothing to try"):
        try_plans(model(), {}, data(1, 1), data(2, 1), loss)
    with pytest.raises(lyc.PlanError, match="can be gone through only once"):
        try_plans(model(), plans, iter(data(1, 1)), data(2, 1), loss)  # type: ignore[arg-type]
    with pytest.raises(lyc.TrainError, match="the loss is not a scalar"):
        try_plans(model(), plans, data(1, 1), data(2, 1), lambda module, batch: module(batch[0]))
    with pytest.raises(lyc.TrainError, match="the loss does not depend on the network"):
        try_plans(model(), plans, data(1, 1), data(2, 1), lambda *given: loss(*given).detach())
    with pytest.raises(lyc.PlanError, match="no trial has a finite loss"):
        try_plans(model(), plans, data(1, 1), data(2, 1), loss, rates=[1e30], steps=5)
