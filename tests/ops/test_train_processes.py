"""Two processes train as one does."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import train_task
from children import in_processes, python
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

import lycoris_ops as lyc
from lycoris_ops.commands import main
from lycoris_ops.turns import Turn, turns

needs_processes = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch trains in one process only"
)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each task. Two processes, started once for all tasks, wrote them."""
    folder = tmp_path_factory.mktemp("tasks") / "two"
    in_processes(folder, "train_task.each", "race", "probe", "whole", "sharded", "both sharded", "command")
    return folder


@needs_processes
def test_two_processes_race_as_one_and_write_the_outcome_once(two: Path) -> None:
    """A second training uses the outcome in both, even if the second process does not find the file."""
    folder = two / "race"
    one, other = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert one == other
    assert len({found[:2] for found in one.values()}) == 1
    text, lr, shapes, file = one["first"]
    found = lyc.Race.of_json(text)
    assert file == "None" and found.lr == lr and len(found.heats) > 3 and len(shapes) > 1
    assert {one["again"][3], one["apart"][3]} <= {
        str(folder / f"{name}-race.json") for name in ("first", "again")
    }
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*-race.json*"))
    assert written == [f"{name}-race.json" for name in ("again", "apart", "first")]
    assert all((folder / name).read_text(encoding="utf-8") == text for name in written)
    # By hand in one process: each heat is a whole training with two batches in a step.
    heat = next(heat for heat in found.heats if heat.name.endswith("as asked"))
    given = lyc.TrainOptions(steps=heat.steps, lr=heat.lr, bar=False)
    trainer = lyc.Trainer(
        train_task.network_of(train_task.model(), 0),
        train_task.loss,
        given,
        validation=train_task.batches(2, 2),
    )
    data = train_task.batches(8, 1)
    for step in range(heat.steps):
        trainer.step(*(data[(2 * step + place) % 8] for place in (0, 1)))
    assert trainer.validate() == pytest.approx(heat.loss, rel=1e-4)


@needs_processes
def test_two_processes_probe_as_one(two: Path) -> None:
    """Of five batches one process has three, the other two; the model is whole or sharded. Four batches are
    divided by a `DistributedSampler`."""
    five, four = (
        train_task.probed(train_task.with_experts(), train_task.batches(count, 1)) for count in (5, 4)
    )
    for rank in range(2):
        probes = torch.load(two / "probe" / f"{rank}.pt", weights_only=False)
        for found, wanted in zip(probes, (five, five, four), strict=True):
            assert found.batches == wanted.batches and list(found.layers) == list(wanted.layers)
            assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
            assert found.agreement == pytest.approx(wanted.agreement, rel=1e-4)
            for path, layer in wanted.layers.items():
                torch.testing.assert_close(found.layers[path].spectrum, layer.spectrum, rtol=1e-5, atol=1e-7)
                for one, other in zip(found.layers[path].offers, layer.offers, strict=True):
                    assert one.kept == pytest.approx(other.kept, rel=1e-4)


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("kind", ["list", "loader", "loader without batches", "iterator"])
def test_a_process_reads_no_batches_of_others(kind: str, start: int) -> None:
    """Three processes share seven batches. An earlier run may have had the first two."""

    def made() -> tuple[train_task.Loaded, Any]:
        torch.manual_seed(0)
        data = train_task.Loaded([float(place) for place in range(14 if kind == "loader" else 7)])
        if kind == "loader":
            return data, DataLoader(data, batch_size=2, shuffle=True)
        if kind == "iterator":
            return data, (data[place] for place in range(7))
        return data, data.found if kind == "list" else DataLoader(data, batch_size=None, shuffle=True)

    whole = [str(batch) for batch in made()[1]]
    found: list[list[Turn]] = []
    for rank in range(3):
        data, batches = made()
        found.append(list(turns(batches, rank, 3, 3 + start)))
        if kind.startswith("loader"):
            assert len(data.read) == len(found[-1]) * (2 if kind == "loader" else 1)
    rounds = list(zip(*found, strict=True))
    assert [str(turn.batch) for each in rounds for turn in each if turn.counts] == whole[start:]
    for each in rounds:
        assert {turn.of for turn in each} == {sum(turn.counts for turn in each)}


def test_a_loader_with_a_distributed_sampler_has_no_batches_of_others() -> None:
    data = train_task.Loaded(list(range(6)))
    for rank in range(3):
        sampler = DistributedSampler(data, 3, rank, shuffle=False)
        found = list(turns(DataLoader(data, batch_size=None, sampler=sampler), rank, 3))
        assert found == [Turn(rank, True, 3), Turn(rank + 3, True, 3)]


@needs_processes
@pytest.mark.parametrize("base", ["whole", "sharded", "both sharded"])
def test_two_processes_give_the_result_of_one(base: str, tmp_path: Path, two: Path) -> None:
    """Broken off and resumed as well. Five batches leave the second process without one now and then.

    With "whole", a loop of one's own with torch's wrapper does too. With "both sharded", the processes have
    parts of the network too, which has layers of four kinds.
    """
    folder = two / base
    if base == "whole":
        alone = train_task.by_hand((0, 1), lambda module: module)
        for rank in range(2):
            assert difference(torch.load(folder / f"ddp{rank}.pt"), alone) < 1e-6

    def made() -> lyc.LycorisNetwork:
        if base == "both sharded":
            return train_task.kinds_of(train_task.deep())
        return train_task.network_of(train_task.model(), 0)

    net = made()
    lyc.train_network(
        net,
        train_task.loaded()[1] if base == "sharded" else train_task.batches(5, 1),
        train_task.loss,
        train_task.options(tmp_path, 2, 6),
        validation=train_task.batches(2, 2),
    )
    (first, trained), (second, _) = (
        torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)
    )
    net.merge_to()
    merged = net.module(train_task.batches(5, 1)[0][0])
    torch.testing.assert_close(first[-1], trained, rtol=1e-5, atol=1e-6)
    assert all(map(torch.equal, first, second))
    assert difference(first, [*net.parameters(), merged]) < 1e-6
    one, other = (lyc.load_adapter(place / "out.safetensors").layers for place in (tmp_path, folder))
    for name, layer in one.items():
        for key, tensor in layer.tensors().items():
            torch.testing.assert_close(other[name].tensors()[key], tensor, rtol=1e-5, atol=1e-7)
    if base == "both sharded":
        # One process reads torch's own checkpoint of two.
        train_task.read_in_parts(made(), first[:-1], str(folder / "parts"))
    # One process goes on from the state of two.
    trainer = lyc.Trainer(made(), train_task.loss, train_task.options(tmp_path, 2, 7))
    trainer.load_state(folder / "out-checkpoints" / "last.state.safetensors")
    assert trainer.done == 6
    trainer.return_to_best()
    assert all(map(torch.equal, trainer.parameters, first))
    trainer.load_state(folder / "out-checkpoints" / "last.state.safetensors")
    assert trainer.saved == 6
    trainer.step(train_task.batches(1)[0])


@needs_processes
def test_two_processes_train_by_the_command_line(tmp_path: Path, two: Path) -> None:
    """They have the variables that torchrun sets, and a plan. Only the first one writes and reports."""
    told = [(two / "command" / f"{rank}.txt").read_text(encoding="utf-8") for rank in range(2)]
    assert json.loads(told[0])["steps"] == 4 and not told[1]
    same_as_one(two / "command", tmp_path)


@needs_processes
@pytest.mark.soak
@pytest.mark.skipif(sys.platform == "win32", reason="torchrun on Windows needs a torch with libuv")
def test_torchrun_trains_by_the_command_line(tmp_path: Path) -> None:
    settings = train_task.write_settings(tmp_path / "two", 1)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lycoris_ops"]
    assert json.loads(python(*torchrun, "train", settings, "--json"))["steps"] == 4
    same_as_one(tmp_path / "two", tmp_path)


def difference(tensors: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference, as a share of the largest value of its tensor."""
    shares = [
        (one - other).detach().abs().max() / other.detach().abs().max().clamp_min(1e-30)
        for one, other in zip(tensors, wanted, strict=True)
    ]
    # As a tensor, whose largest value is NaN where there is one.
    return float(torch.stack(shares).max())


def same_as_one(folder: Path, place: Path) -> None:
    """Assert that one process, with two batches in a step, gives the adapter that two gave in a folder."""
    assert main(["train", str(train_task.write_settings(place / "one", 2))]) == 0
    one, two = (lyc.load_adapter(path / "out.safetensors").layers for path in (place / "one", folder))
    assert one.keys() == two.keys() == {"lycoris_0", "lycoris_2"}
    for name, layer in one.items():
        for key, tensor in layer.tensors().items():
            torch.testing.assert_close(two[name].tensors()[key], tensor, rtol=1e-5, atol=1e-7)
