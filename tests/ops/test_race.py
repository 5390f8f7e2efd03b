"""Races before a training: heats, climbs, what they cost, and what is kept of them."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.train.race import VALIDATED
from lycoris_ops.train.search import KINDS, _Given  # pyright: ignore[reportPrivateUsage]


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.Dropout(0.1), nn.Tanh(), nn.Linear(24, 4))


class Loss:
    """The mean square error, and how many batches of 32 it saw, with a gradient and without."""

    def __init__(self) -> None:
        self.trained, self.judged = 0, 0.0

    def __call__(self, module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.trained += torch.is_grad_enabled()
        self.judged += len(batch[0]) / 32 * (not torch.is_grad_enabled())
        return nn.functional.mse_loss(module(batch[0]), batch[1])

    @property
    def steps(self) -> float:
        return self.trained + VALIDATED * self.judged


def data(seed: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Outputs of another network, which the model is to learn."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(9)
    teacher = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 4))
    inputs = [torch.randn(32, 12, generator=generator) for _ in range(count)]
    return [(x, teacher(x).detach()) for x in inputs]


BATCHES, HELD = data(1, 8), data(2, 2)
OPTIONS = lyc.TrainOptions(steps=300, schedule="cosine", warmup=0.05, bar=False, search_share=1.0)


def trained(rank: int, lr: float, steps: int) -> float:
    """The held-out loss after a whole training, made by hand."""
    net = lyc.create_lycoris(model(), rank=rank, seed=0)
    given = replace(OPTIONS, steps=steps, lr=lr)
    trainer = lyc.Trainer(net, Loss(), given, validation=HELD)
    for number in range(steps):
        trainer.step(BATCHES[number % len(BATCHES)])
    return trainer.validate()


def entrants(module: nn.Module, lr: float = 1e-3) -> list[lyc.Entrant]:
    return [
        lyc.Entrant(f"rank {rank}", lambda rank=rank: lyc.create_lycoris(module, rank=rank, seed=0), lr)
        for rank in (1, 4)
    ]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Steps that only count: where no loss is asked for, or the test itself says which it is."""

    def count(trainer: lyc.Trainer, feed: object) -> None:
        trainer.done += 1

    monkeypatch.setattr(lyc.Trainer, "step_of", count)
    return monkeypatch


def test_the_winner_is_the_one_whose_whole_training_is_best() -> None:
    net = model()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    loss = Loss()
    given: Any = (entrants(net, 1e-2), BATCHES, HELD, loss, OPTIONS)
    found = lyc.race(*given, steps=200, share=1.0)
    wanted = {rank: trained(rank, 1e-2, 200) for rank in (1, 4)}
    assert found.name == f"rank {min(wanted, key=lambda rank: wanted[rank])}" == "rank 4"
    # A heat is a whole training of its length: the rate has fallen at its end.
    heat = found.heats[0]
    assert (heat.name, heat.lr) == ("rank 1", 1e-2) and len(found.heats) == 3
    assert heat.loss == pytest.approx(trained(1, heat.lr, heat.steps), rel=1e-6)
    assert found.winner is not None and found.winner.loss < found.start
    assert found.winner.steps == heat.steps > 60 and found.winner.parameters == 4 * (36 + 28)
    # All that went through the model is counted, and stays within the budget.
    assert loss.steps == found.spent <= found.budget == 200
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert lyc.race(*given, steps=200, share=1.0) == found


@pytest.mark.parametrize("first", [1e-5, 1.0])
def test_a_rate_that_is_far_off_is_corrected(first: float) -> None:
    module = model()
    found = lyc.race(entrants(module, first)[1:], BATCHES, HELD, Loss(), OPTIONS, steps=150, share=2.0)
    assert 1e-3 <= found.lr <= 1e-1
    assert found.winner and found.winner.loss < 0.8 * found.start


@pytest.mark.parametrize("best", [1e-2, 1.8e-2, 3e-3])
def test_two_rates_next_to_each_other_have_the_budget(best: float, quick: pytest.MonkeyPatch) -> None:
    def judged(trainer: lyc.Trainer) -> float:
        return 2.0 if not trainer.done else 1 + abs(math.log((trainer.options.lr or 1) / best)) / 4

    quick.setattr(lyc.Trainer, "validate", judged)
    given: Any = (entrants(model(), 1e-2)[:1], BATCHES, HELD, Loss(), OPTIONS)
    short = lyc.race(*given, steps=100, share=1.0)
    assert [(heat.lr, heat.steps) for heat in short.heats] == [(1e-2, 48), (1.8e-2, 48)]
    assert short.lr == max(best, 1e-2)
    end, other = ("lowest", "lower") if short.lr == 1e-2 else ("highest", "higher")
    edge = "; it is the {} rate that was tried, and a {} one may be better; "
    assert edge.format(end, other) in short.verdict()
    # A larger one is for rates that are far off.
    found = lyc.race(*given, steps=300, share=1.0)
    assert found.lr == best and {heat.steps for heat in found.heats} == {73}
    assert (edge.format("lowest", "lower") in found.verdict()) is (best == min(h.lr for h in found.heats))


@pytest.mark.parametrize("start", [2.0, -2.0], ids=["above 0", "below 0, as of a density"])
def test_a_decade_that_is_too_much_is_halved(start: float, quick: pytest.MonkeyPatch) -> None:
    """The loss has hardly fallen at the first rate, and is lowest at 2.2 times that rate."""

    def judged(trainer: lyc.Trainer) -> float:
        far = abs(math.log((trainer.options.lr or 1) / 2.2e-2))
        return start + (far - 0.8) / 4 if trainer.done else start

    quick.setattr(lyc.Trainer, "validate", judged)
    # Judging costs 25 steps, so that only three heats can have 50.
    given: Any = (entrants(model(), 1e-2)[:1], BATCHES, HELD * 25, Loss(), OPTIONS)
    found = lyc.race(*given, steps=250, share=1.0)
    assert [(heat.lr, heat.steps) for heat in found.heats] == [(1e-2, 50), (1e-1, 50), (3e-2, 50)]


@pytest.mark.parametrize("share", [0.03, 0.1, 0.2, 0.35, 0.6])
def test_the_budget_is_never_exceeded(share: float) -> None:
    loss, told = Loss(), list[lyc.RaceStep]()
    found = lyc.race(
        entrants(model()), BATCHES, HELD, loss, OPTIONS, steps=300, share=share, told=told.append
    )
    assert loss.steps == found.spent <= share * 300
    assert all(step.heat <= step.of and step.spent <= step.budget for step in told)
    assert [step.heat for step in told if step.step == 0] == list(range(1, len(found.heats) + 1))
    if share == 0.03:
        assert not found.heats and found.name == "rank 1" and found.winner is None
        assert "too few" in found.verdict()
    # A kind is left out rather than judged by heats that are too short.
    assert found.left_out == (() if share > 0.35 else ("rank 4",))


def test_larger_held_out_batches_and_slower_kinds_cost_more() -> None:
    large = [(x.repeat(4, 1), y.repeat(4, 1)) for x, y in HELD * 4]
    loss, (first, second) = Loss(), entrants(model())
    slow = [first, replace(second, step=1.5)]
    found = lyc.race(slow, BATCHES, large[:2], loss, OPTIONS, steps=300, share=1.5)
    steps = [heat.steps * (1.5 if heat.name == "rank 4" else 1.0) for heat in found.heats]
    # The training itself would take half as long again with the slower one, which counts as well.
    assert found.spent == sum(steps) + VALIDATED * loss.judged <= found.budget == 300
    assert loss.judged == 8 * (1 + len(found.heats))
    assert lyc.race(slow, BATCHES, HELD, Loss(), OPTIONS, steps=300, share=0.5).left_out == ("rank 4",)
    # Held-out batches are four times as large as the training's, so one of them judges instead of four.
    loss, rate = Loss(), replace(OPTIONS, search="rate")
    searched = lyc.search_network(network(), BATCHES, loss, rate, steps=300, validation=large)
    assert searched.race and loss.judged == 4 * (1 + len(searched.race.heats))


def test_a_heat_that_diverges_ends() -> None:
    loss = Loss()
    found = lyc.race(entrants(model(), 1e30)[:1], BATCHES, HELD, loss, OPTIONS, steps=200, share=1)
    first = found.heats[0]
    assert first.lr == 1e30 and math.isinf(first.loss)
    # It went down from there, and what was left of the heat went to others.
    assert all(heat.lr < 1e30 for heat in found.heats[1:])
    assert loss.steps <= found.spent <= found.budget and loss.trained < 200


def test_it_says_where_nothing_was_learned() -> None:
    untrained = model().eval()
    wrong = [(x, untrained(x).detach()) for x, _ in HELD]
    found = lyc.race(entrants(model()), BATCHES, wrong, Loss(), OPTIONS, steps=300, share=0.3)
    assert f"no loss fell below the {found.start:.4g} before any step" in found.verdict()


def test_a_race_is_told_kept_and_drawn(tmp_path: Path) -> None:
    found = lyc.race(entrants(model()), BATCHES, HELD, Loss(), OPTIONS, steps=300, share=0.6)
    won = found.winner
    assert won
    first = str(found).splitlines()[0]
    assert first.startswith(f"{found.name} at {found.lr:g}: {won.loss:.4g} held out after {won.steps} steps")
    assert "; rank " in first and first.endswith(f"{found.spent:.0f} steps spent of 180")
    assert lyc.Race.of_json(found.json()) == found
    lyc.draw_race(found, tmp_path / "race.png")
    assert (tmp_path / "race.png").stat().st_size > 1000
    drawn = lyc.race_picture(found).svg()
    assert "rank 1" in drawn and "rank 4" in drawn and found.name in drawn
    with pytest.raises(lyc.FileFormatError, match="not the outcome of a race"):
        lyc.Race.of_json('{"form": 1}')


def test_bad_use_is_an_error() -> None:
    some = entrants(model())
    with pytest.raises(lyc.TrainError, match="nothing to race"):
        lyc.race([], BATCHES, HELD, Loss(), OPTIONS, steps=100, share=1)
    with pytest.raises(lyc.TrainError, match="can be gone through only once"):
        lyc.race(some, iter(BATCHES), HELD, Loss(), OPTIONS, steps=100, share=1)
    with pytest.raises(lyc.TrainError, match="two entrants have one name"):
        lyc.race([*some, *some], BATCHES, HELD, Loss(), OPTIONS, steps=100, share=1)
    with pytest.raises(lyc.TrainError, match="the loss does not depend on the network"):
        lyc.race(some, BATCHES, HELD, lambda *given: Loss()(*given).detach(), OPTIONS, steps=100, share=1)
    with pytest.raises(lyc.TrainError, match="no heat has a finite loss"):
        lyc.race(entrants(model(), 1e35)[:1], BATCHES, HELD, Loss(), OPTIONS, steps=100, share=1)
    with pytest.raises(
        lyc.DivergedError, match=r"is inf after step 0.*the lr is not at fault. Look at alpha"
    ):
        lyc.race(some, BATCHES, HELD, lambda *given: Loss()(*given) * math.inf, OPTIONS, steps=100, share=1)
    with pytest.raises(lyc.TrainError, match="out of its range"):
        lyc.TrainOptions(steps=1, search="kinds")


# Before a training.


def network(**options: Any) -> lyc.LycorisNetwork:
    return lyc.create_lycoris(model(), seed=0, **{"rank": 4, **options})


def test_off_and_a_share_of_nothing_change_nothing(tmp_path: Path) -> None:
    ends: list[list[Tensor]] = []
    for search, share in (("off", 0.4), ("all", 0.0)):
        given = lyc.TrainOptions(steps=5, search=search, search_share=share, bar=False, picture=False)
        net = network()
        result = lyc.train_network(net, BATCHES, Loss(), given)
        assert result.searched and result.searched.network is net and result.searched.race is None
        ends.append(list(net.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.parametrize(
    "kind",
    [
        {"algorithm": "lokr"},
        {"dora": "output"},
        *(pytest.param({"algorithm": kind}, marks=pytest.mark.soak) for kind in ("lora", "loha", "oft")),
    ],
)
def test_the_rate_of_a_kind_is_found_and_the_training_begins_afresh(kind: dict[str, Any]) -> None:
    options = replace(OPTIONS, steps=100, search="rate", search_share=0.9)
    net = network(**kind)
    result = lyc.train_network(net, BATCHES, Loss(), options, validation=HELD)
    found = result.searched
    assert found and found.race and found.network is net and found.options.lr == found.race.lr
    assert {heat.name for heat in found.race.heats} == {found.race.name}
    assert result.history.validation[0][1] == pytest.approx(found.race.start)
    by_hand = network(**kind)
    same = replace(OPTIONS, steps=100, lr=found.race.lr)
    wanted = lyc.train_network(by_hand, BATCHES, Loss(), same, validation=HELD)
    assert result.history.losses == wanted.history.losses
    assert found.race.verdict() in str(result)


def test_all_chooses_among_kinds_of_at_most_the_same_size(request: pytest.FixtureRequest) -> None:
    options = replace(OPTIONS, steps=400, search="all", search_share=1.0, bar=True)
    net, loss, told = network(dora="output"), Loss(), list[lyc.RaceStep]()
    most = sum(parameter.numel() for parameter in net.parameters())
    found = lyc.search_network(net, BATCHES, loss, options, steps=400, validation=HELD, told=told.append)
    assert found.race and not net.applied and not found.network.applied
    assert {heat.name for heat in found.race.heats} == {"dora lora as asked", *KINDS}
    assert all(heat.parameters <= most for heat in found.race.heats)
    names = {step.name for step in told}
    assert names == {heat.name for heat in found.race.heats}
    # The probe of the plan is counted in, each of its 8 batches at 1.6 steps, and slower steps of kinds too.
    slower = {"planned lora": 0.06, "whole lokr": 0.25}
    more = sum(heat.steps * slower.get(heat.name, 0.0) for heat in found.race.heats)
    assert found.race.spent == pytest.approx(loss.steps + 8 * 0.6 + more) and found.race.spent <= 300
    count = sum(parameter.numel() for parameter in found.network.parameters())
    assert found.race.winner and found.race.winner.parameters == count
    assert found.network.module is net.module
    # A dialect that cannot hold LoKr.
    request.getfixturevalue("quick")
    diffusers = replace(options, dialect="diffusers")
    found = lyc.search_network(net, BATCHES, loss, diffusers, steps=400, validation=HELD)
    assert found.race and {heat.name for heat in found.race.heats} == names - {"whole lokr"}
    with pytest.raises(lyc.TrainError, match="the layers are from a file"):
        lyc.search_network(
            lyc.create_lycoris(model(), weights=net.to_adapter()), BATCHES, loss, options, steps=400
        )


def test_what_is_asked_for_is_not_replaced_without_a_race() -> None:
    options = replace(OPTIONS, search="all", search_share=0.4)
    net = network(dora="output")
    found = lyc.search_network(net, BATCHES, Loss(), options, steps=120, validation=HELD)
    assert found.network is net and found.race and found.race.heats
    assert {heat.name for heat in found.race.heats} == {"dora lora as asked"}
    assert set(found.race.left_out) == set(KINDS) and "too few steps to race" in str(found.race)
    result = lyc.train_network(network(), BATCHES, Loss(), replace(OPTIONS, search="all", steps=20))
    assert "too few steps to race: planned lora, whole lokr" in str(result)


@pytest.mark.usefixtures("quick")
def test_what_is_asked_for_is_not_raced_twice() -> None:
    options = replace(OPTIONS, search="all", search_share=1.0)
    plan = lyc.plan_ranks(lyc.probe(model(), BATCHES, Loss()), size=lyc.Budget(parameters=150))
    for net, wanted in (
        (network(), {"lora as asked", "planned lora", "whole lokr"}),
        (lyc.create_lycoris(model(), plan=plan), {"lora as asked", "whole lokr", "uniform lora"}),
        # A LoKr with as few numbers as possible: fewer than a LoRA of rank 1 on every layer.
        (network(algorithm="lokr", rank=1), {"lokr as asked", "planned lora"}),
    ):
        found = lyc.search_network(net, BATCHES, Loss(), options, steps=300)
        assert found.race
        raced = {heat.name for heat in found.race.heats} | set(found.race.left_out)
        assert raced == wanted, raced
    # What no budget allows is named, and a file that keeps the race has it too.
    assert found.race.missed()[-1].startswith("not raced: whole lokr (needs ")
    assert found.race.missed()[-1].endswith(" parameters, and the budget is 38)")
    assert lyc.Race.of_json(found.race.json()) == found.race


@pytest.mark.usefixtures("quick")
def test_an_optimiser_that_finds_the_rate_itself_races_kinds_alone() -> None:
    pytest.importorskip("prodigyopt")
    options = replace(OPTIONS, optimiser="prodigy", search="all", search_share=1.0)
    found = lyc.search_network(network(), BATCHES, Loss(), options, steps=300)
    assert found.race and {heat.lr for heat in found.race.heats} == {1.0}
    assert len({heat.name for heat in found.race.heats}) == len(found.race.heats) > 1
    with pytest.raises(lyc.TrainError, match=r"finds the rate itself.*rate, and the optimiser prodigy"):
        lyc.search_network(network(), BATCHES, Loss(), replace(options, search="rate"), steps=300)


def test_without_validation_the_first_batches_are_set_apart() -> None:
    seen: list[tuple[bool, int]] = []
    data = [(*batch, torch.tensor(number)) for number, batch in enumerate(BATCHES)]

    def loss(module: nn.Module, batch: Any) -> Tensor:
        seen.append((torch.is_grad_enabled(), int(batch[2])))
        return Loss()(module, batch[:2])

    lyc.search_network(network(), data, loss, replace(OPTIONS, search="rate"), steps=60)
    assert {number for grad, number in seen if not grad} == {0, 1}
    assert {number for grad, number in seen if grad} == {2, 3, 4, 5, 6, 7}
    seen.clear()
    lyc.search_network(network(), data[:2], loss, replace(OPTIONS, search="rate"), steps=60)
    assert {number for _, number in seen} == {0, 1}
    with pytest.raises(lyc.TrainError, match="can be gone through only once"):
        lyc.search_network(network(), iter(data), loss, replace(OPTIONS, search="rate"), steps=60)


def test_a_second_training_begins_with_what_the_first_found(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # A folder that is not there yet.
    tmp_path = tmp_path / "new"

    def options(name: str, **more: Any) -> lyc.TrainOptions:
        given: dict[str, Any] = {"steps": 120, "search": "all", "search_share": 0.9, "bar": False}
        return lyc.TrainOptions(
            **given | {"output": tmp_path / f"{name}.safetensors", "picture": False} | more
        )

    def searched(given: lyc.TrainOptions, batches: Any = BATCHES, **more: Any) -> lyc.Searched:
        found = lyc.search_network(
            network(**more), batches, Loss(), given, steps=given.steps or 0, validation=HELD
        )
        assert found.race
        return found

    first = searched(options("one"))
    assert first.file is None and (tmp_path / "one-race.json").exists()
    # Another name, seed and length, and a smaller share.
    again = searched(options("two", seed=3, steps=200, search_share=0.5))
    assert again.file == tmp_path / "one-race.json" and again.race == first.race
    assert again.options.lr == first.options.lr and "not raced again" in str(again)
    for one, other in zip(again.network.members.values(), first.network.members.values(), strict=True):
        assert {n: t.shape for n, t in one.layer.tensors().items()} == {
            n: t.shape for n, t in other.layer.tensors().items()
        }
    assert lyc.Race.of_json((tmp_path / "two-race.json").read_text()) == first.race
    request.getfixturevalue("quick")
    # What decides it is compared: data, network, options, the share and the length.
    assert searched(options("three"), data(7, 8)).file is None
    assert searched(options("three"), rank=3).file is None
    assert searched(options("three", accumulation=2)).file is None
    assert searched(options("three", steps=600)).file is None
    assert searched(options("three", search_share=1.0)).file is None
    (tmp_path / "four-race.json").write_text("[]", encoding="utf-8")
    assert searched(options("three")).file is not None
    with pytest.raises(lyc.FileFormatError, match=r"four-race\.json"):
        searched(options("four"))


@pytest.mark.parametrize("lr", [1e-3, 1e-4])
def test_a_training_that_is_gone_on_with_does_not_race_again(tmp_path: Path, lr: float) -> None:
    given = lyc.TrainOptions(
        steps=100, search="all", search_share=0.9, lr=lr, bar=False, picture=False,
        output=tmp_path / "out.safetensors",
    )  # fmt: skip

    def halt(report: lyc.StepReport) -> None:
        if report.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lyc.train_network(network(), BATCHES, Loss(), given, validation=HELD, progress=halt)
    loss = Loss()
    result = lyc.train_network(network(), BATCHES, loss, given, validation=HELD, resume=given.folder)
    assert result.searched and result.searched.file and result.steps == 100
    assert loss.trained == 93
    unbroken = lyc.train_network(network(), BATCHES, Loss(), replace(given, output=None), validation=HELD)
    assert result.history.losses == unbroken.history.losses


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("kept", [False, True], ids=["after a race", "of an earlier race"])
def test_an_outcome_that_cannot_be_written_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, kept: bool
) -> None:
    def options(name: str) -> lyc.TrainOptions:
        return replace(
            OPTIONS, search="rate", steps=60, output=tmp_path / f"{name}.safetensors", picture=False
        )

    def searched(net: lyc.LycorisNetwork, name: str) -> lyc.Searched:
        return lyc.search_network(net, BATCHES, Loss(), options(name), steps=60, validation=HELD)

    if kept:
        searched(network(), "earlier")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    net = network()
    weights = [parameter.clone() for parameter in net.parameters()]

    def full(handle: int) -> None:
        raise fault

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((lyc.WriteError, KeyboardInterrupt)) as caught:
        lyc.train_network(net, BATCHES, Loss(), options("new"), validation=HELD)
    monkeypatch.undo()
    if isinstance(caught.value, lyc.WriteError):
        assert str(tmp_path / "new-race.json") in str(caught.value)
        assert "the disk is full" in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert not net.applied
    assert all(torch.equal(one, other) for one, other in zip(weights, net.parameters(), strict=True))
    assert (searched(net, "new").file is not None) is kept
    assert lyc.Race.of_json((tmp_path / "new-race.json").read_text(encoding="utf-8")).heats
    (tmp_path / "new-race.json").write_bytes(b"\xff")
    with pytest.raises(lyc.FileFormatError, match=r"new-race\.json: not the outcome of a race"):
        searched(net, "new")


def test_an_interrupt_leaves_the_model_and_the_network_as_they_were() -> None:
    net = network()
    before = [parameter.clone() for parameter in net.parameters()]

    def halt(step: lyc.RaceStep) -> None:
        if step.heat == 2 and step.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lyc.search_network(net, BATCHES, Loss(), replace(OPTIONS, search="rate"), steps=300, told=halt)
    assert not net.applied and all(parameter.requires_grad for parameter in net.module.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True))


def test_rows_that_are_trained_stay_so_in_every_network_of_a_race() -> None:
    net = network(overrides={"0": {"tokens": [1, 3]}})
    options = replace(OPTIONS, search="all", search_share=1.0)
    given = _Given(net, BATCHES, Loss(), options)
    made = [kind.make(given) for kind in KINDS.values()]
    assert any(made)
    for make in filter(None, made):
        held = make().members["0"].layer.tensors()
        assert held.keys() == {"set_rows", "set_rows_at"}
