"""Short trials of several plans."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.train.by_block import MIXED, blocks_of
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
    with pytest.raises(lyc.PlanError, match="the loss is not a scalar"):
        try_plans(model(), plans, data(1, 1), data(2, 1), lambda module, batch: module(batch[0]))
    with pytest.raises(lyc.PlanError, match="the loss does not depend on the network"):
        try_plans(model(), plans, data(1, 1), data(2, 1), lambda *given: loss(*given).detach())
    with pytest.raises(lyc.PlanError, match="no trial has a finite loss"):
        try_plans(model(), plans, data(1, 1), data(2, 1), loss, rates=[1e30], steps=5)


def test_the_algorithm_of_each_block_is_the_one_that_trained_best() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4))
    probe = lyc.probe(net, data(1, 4), loss, algorithms=("lora", "lokr"))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = lyc.try_algorithms(
        net,
        probe,
        data(1, 6),
        data(2, 2),
        loss,
        size=lyc.Budget(parameters=400),
        algorithms=("lora", "lokr"),
        rates=(3e-3, 3e-2),
        steps=10,
        rounds=2,
    )
    losses = {(trial.name, trial.steps): trial.loss for trial in found.trials}
    longest = found.best.steps
    # It is no worse than either algorithm for all layers, and each swap has as many parameters at most.
    assert longest == 30 and found.best.loss == min(
        loss for (_, steps), loss in losses.items() if steps == 30
    )
    assert {"lora", "lokr"} <= found.plans.keys() and all(p.parameters <= 400 for p in found.plans.values())
    whole = next(trial for trial in found.trials if trial.name in ("lora", "lokr"))
    other = {"lora": "lokr", "lokr": "lora"}[whole.name]
    base = found.plans[whole.name]
    own = next(trial.lr for trial in found.trials if trial.name == other)
    swapped = {name: plan for name, plan in found.plans.items() if ": " in name}
    assert swapped
    for name, plan in swapped.items():
        block, kind = name.split(": ")
        row = plan[block]
        assert kind == other and row.algorithm == other and row.parameters <= base[block].parameters
        assert row.lr == pytest.approx(own / whole.lr * ALGORITHMS[other].rate)
        assert row.gain == pytest.approx(probe.gain_of(block, other, row.factor, row.rank) / probe.energy)
        assert [one for one in plan if one.path != block] == [one for one in base if one.path != block]
    short = {trial.name: trial.loss for trial in found.trials if (trial.steps, trial.lr) == (10, whole.lr)}
    better = [name for name in swapped if short[name] < short[whole.name]]
    assert (MIXED in found.plans) == bool(better)
    rows = [row for row in found.plans.get(MIXED, ()) if row.algorithm == other]
    assert {row.path for row in rows} == {name.split(": ")[0] for name in better}
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_blocks_are_those_that_rules_name() -> None:
    paths = ["embed", "encoder.layer.0.q", "encoder.layer.0.k", "encoder.layer.1.q", "input_blocks.1.0.proj"]
    assert list(blocks_of(paths, 9)) == ["embed", "encoder.0", "encoder.1", "in.1"]
    assert list(blocks_of(paths, 2)) == ["embed to encoder.0", "encoder.1 to in.1"]
    assert blocks_of([""], 3) == {"weight": [""]}
    unnamed = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    assert blocks_of([unnamed], 3) == {unnamed: [unnamed]}
    assert [path for each in blocks_of(paths, 3).values() for path in each] == paths


def test_algorithms_that_have_no_plan_are_an_error(plans: dict[str, lyc.Plan]) -> None:
    probe = plans["one rank"].probe
    assert probe is not None
    given: Any = (model(), probe, data(1, 1), data(2, 1), loss)
    with pytest.raises(lyc.PlanError, match="there is nothing to choose from"):
        lyc.try_algorithms(*given, algorithms=("lora",))
    with pytest.raises(lyc.PlanError, match="no such algorithm"):
        lyc.try_algorithms(*given, algorithms=("lora", "tlora"))
