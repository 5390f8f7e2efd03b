"""The loop: exact resume, interrupts, bad input, and steps against a loop written by hand."""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import child_environment
from torch import Tensor, nn
from train_task import batches
from train_task import loss as plain

import lycoris_ops as lyc
from lycoris_ops.train import checkpoints, progress
from lycoris_ops.train.feed import moved
from lycoris_ops.train.metadata import metadata_of_training
from lycoris_ops.train.optimisers import optimisers
from lycoris_ops.train.progress import Lines
from lycoris_ops.train.schedules import schedule
from lycoris_ops.train.trainer import STATE_FORM, Trainer

OPTIMISERS = {
    **dict.fromkeys(optimisers()),
    "prodigy": "prodigyopt",
    "schedulefree": "schedulefree",
    "adamw8bit": "bitsandbytes",
    "torch.optim:NAdam": None,
}
"""Every optimiser offered and one by its class, with the package that it needs."""
OF_TORCH = {"adafactor": "Adafactor", "muon": "Muon"}
"""Optimisers that torch has since a version newer than the oldest that the library works with."""


def offered(optimiser: str) -> str:
    """The optimiser. The test is skipped where its package, or this torch, does not have it."""
    package, name = OPTIMISERS[optimiser], OF_TORCH.get(optimiser, "AdamW")
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if not hasattr(torch.optim, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")
    return optimiser


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.inner = nn.Linear(8, 12)
        self.norm = nn.LayerNorm(12)
        self.outer = nn.Linear(12, 4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.norm(self.inner(x))))


def network(algorithm: str = "lora", **options: Any) -> lyc.LycorisNetwork:
    return lyc.create_lycoris(Model(), algorithm=algorithm, rank=2, seed=3, **options)


def noisy(module: nn.Module, batch: Any) -> Tensor:
    """A loss with chance out of each of the generators."""
    x, y = batch
    x = x + 0.1 * torch.randn_like(x) + 0.1 * random.random() + 0.1 * float(np.random.rand())  # noqa: NPY002
    return plain(module, (x, y))


class Shuffled(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Items with chance in them, drawn while they are read."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(8, generator=generator) + 0.1 * torch.randn(8), torch.full((4,), float(index % 3))


def loader() -> Any:
    return torch.utils.data.DataLoader(Shuffled(), batch_size=4, shuffle=True)


def options(folder: Path, **given: Any) -> lyc.TrainOptions:
    folder.mkdir(exist_ok=True)
    default: dict[str, Any] = {
        "steps": 7,
        "output": folder / "out.safetensors",
        "bar": False,
        "picture": False,
        "lr": 0.01,
    }
    return lyc.TrainOptions(**(default | given))


def halted(step: int, net: lyc.LycorisNetwork, *given: Any, **named: Any) -> None:
    """Train until an error after this step."""

    def progress(report: lyc.StepReport) -> None:
        if report.step == step:
            raise RuntimeError("halt")

    with pytest.raises(RuntimeError, match="halt"):
        lyc.train_network(net, *given, progress=progress, **named)


def never(module: nn.Module, batch: Any) -> Tensor:
    raise AssertionError("a step was taken")


def full_options(folder: Path, optimiser: str) -> lyc.TrainOptions:
    averages = optimiser == "schedulefree"
    return options(
        folder,
        optimiser=optimiser,
        # Its states of small tensors would be of 32 bits.
        optimiser_options={"min_8bit_size": 1} if optimiser == "adamw8bit" else {},
        lr=None if optimiser == "prodigy" else 0.01,
        schedule="constant" if averages else "cosine",
        warmup=2,
        accumulation=2,
        weight_decay=0.01,
        ema=None if averages else 0.9,
        max_weight_norm=2.0,
        validate_every=3,
        checkpoint_every=2,
        keep=1,
    )


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_run_that_is_resumed_ends_as_an_unbroken_one(tmp_path: Path, optimiser: str) -> None:
    offered(optimiser)
    dropouts = {"rank_dropout": 0.3, "module_dropout": 0.2}
    held_out = batches(2, seed=9)
    whole = full_options(tmp_path / "a", optimiser)
    broken = full_options(tmp_path / "b", optimiser)
    adapt = lambda: network(exclude="norm", **dropouts)  # noqa: E731
    result = lyc.train_network(adapt(), loader(), noisy, whole, validation=held_out)
    for step in (3, 4):
        torch.randn(step)
        resume = broken.last_state if step > 3 else None
        halted(step, adapt(), loader(), noisy, broken, validation=held_out, resume=resume)
    again = lyc.train_network(adapt(), loader(), noisy, broken, validation=held_out, resume=broken.last_state)
    for name in ("out.safetensors", "out-checkpoints/last.state.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert again.history == result.history
    assert len(result.history.losses) == 7 and [step for step, _ in result.history.validation] == [0, 3, 6, 7]
    kept = sorted(file.name for file in (tmp_path / "b" / "out-checkpoints").glob("*.state.safetensors"))
    assert "step-000006.state.safetensors" in kept and "step-000004.state.safetensors" not in kept


def test_a_crash_loses_ten_minutes_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a pretended clock, of which each step takes four minutes. Nothing is written before it is time."""
    minutes = 0.0
    monkeypatch.setattr(checkpoints, "monotonic", lambda: 60 * minutes)
    given: dict[str, Any] = {"steps": 9, "accumulation": 2, "ema": 0.9, "schedule": "cosine"}
    whole, broken = (options(tmp_path / name, **given) for name in "ab")
    folder = tmp_path / "a" / "out-checkpoints"
    found: list[int | None] = []

    def watch(report: lyc.StepReport) -> None:
        nonlocal minutes
        minutes += 4
        state = lyc.newest_state(folder)
        found.append(None if state is None else state.step)
        if report.step == 8:
            shutil.copytree(tmp_path / "a", tmp_path / "b", dirs_exist_ok=True)

    lyc.train_network(network(), loader(), noisy, whole, progress=watch)
    # The clock begins with the end of the first step.
    assert found == [None, None, None, None, 4, 4, 4, 7, 7]
    again = lyc.train_network(network(), loader(), noisy, broken, resume=broken.folder)
    assert again.resumed and again.resumed.startswith("step 7 of an earlier run: last.state.safetensors")
    for name in ("out.safetensors", "out-checkpoints/last.state.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_training_goes_on_where_a_checkpoint_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same clock. The report says which ones are missing, and what is written after them is there."""
    minutes = 0.0
    monkeypatch.setattr(checkpoints, "monotonic", lambda: 60 * minutes)
    save_state, failed = Trainer.save_state, [4, 9]

    def full(trainer: Trainer, path: Any) -> None:
        if trainer.done in failed:
            raise lyc.WriteError("the disk is full", file=str(path))
        save_state(trainer, path)

    def wait(report: lyc.StepReport) -> None:
        nonlocal minutes
        minutes += 4

    monkeypatch.setattr(Trainer, "save_state", full)
    result = lyc.train_network(network(), loader(), noisy, options(tmp_path, steps=9), progress=wait)
    assert result.steps == 9
    for steps in failed:
        assert f"a checkpoint could not be written after {steps} steps: " in str(result)
    assert "the disk is full" in str(result) and (tmp_path / "out.safetensors").exists()


def newest(folder: Path) -> tuple[str, int, int]:
    found = lyc.newest_state(folder)
    assert found is not None and found.finished == (found.step == found.of)
    return found.path.name, found.step, found.of


def test_the_newest_state_is_that_of_the_most_steps_since_the_training_last_went_back(
    tmp_path: Path,
) -> None:
    settings = options(tmp_path, steps=6, checkpoint_every=2, keep=9)
    halted(5, network(), batches(), plain, settings)
    folder = tmp_path / "out-checkpoints"
    assert newest(folder) == ("last.state.safetensors", 5, 6)
    (folder / "last.state.safetensors").unlink()
    # Older, but the file is newer.
    os.utime(folder / "step-000002.state.safetensors")
    assert newest(folder) == ("step-000004.state.safetensors", 4, 6)

    # What is left behind is not taken for what comes after, though it has more steps.
    slower = replace(settings, lr=0.001)
    halted(3, network(), batches(), plain, slower, resume=folder / "step-000002.state.safetensors")
    last = folder / "last.state.safetensors"
    assert newest(folder) == (last.name, 3, 6)
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    found = lyc.newest_state(folder)
    assert found and found.step == 2 and "; passed over: last.state.safetensors (" in found.why
    last.write_bytes(whole)
    result = lyc.train_network(network(), batches(), plain, slower, resume=folder)
    assert result.resumed == "step 3 of an earlier run: last.state.safetensors, the newest of 3 states"
    assert newest(folder) == ("last.state.safetensors", 6, 6)

    for path in folder.glob("*.state.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(lyc.TrainError, match=r"whole .*step-000002\.state\.safetensors \(.*too short"):
        lyc.train_network(network(), batches(), plain, slower, resume=folder)
    STATE_FORM.write(folder / "step-000002.state.safetensors", {"step": 2, "of": 6, "returns": 0})
    with pytest.raises(lyc.TrainError, match=r"whole .*nothing called 'settings'"):
        lyc.newest_state(folder)
    with pytest.raises(lyc.TrainError, match="no state of a training to go on from"):
        lyc.train_network(network(), batches(), plain, slower, resume=tmp_path / "nowhere")


def test_the_same_seed_makes_the_same_file_and_another_one_does_not(tmp_path: Path) -> None:
    files: list[bytes] = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        torch.manual_seed(number)
        lyc.train_network(network(), loader(), noisy, options(out, seed=seed))
        files.append((out / "out.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]
    # Layers of one shape have starts of their own.
    twins = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    members = lyc.create_lycoris(twins, rank=2, seed=0).members.values()
    one, other = (member.layer.tensors()["lora_down"] for member in members)
    assert not torch.equal(one, other)


def test_steps_are_those_of_a_loop_by_hand() -> None:
    """AdamW with a warm-up, cosine, accumulation, clipping, LoRA+ and an average, with torch's own parts."""
    settings = lyc.TrainOptions(
        steps=6, lr=0.02, schedule="cosine", warmup=2, accumulation=2, clip_norm=0.05, ema=0.5,
        lora_plus=4.0, weight_decay=0.1, bar=False,
    )  # fmt: skip
    data = batches(4)
    net = network(exclude="norm")
    trainer = lyc.Trainer(net, plain, settings)
    reports = [trainer.step(data[2 * i % 4], data[2 * i % 4 + 1]) for i in range(6)]

    twin = network(exclude="norm").apply_to()
    groups = twin.parameter_groups(0.02, lora_plus=4.0, weight_decay=0.1)
    optimiser = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimiser,
        [
            torch.optim.lr_scheduler.LinearLR(optimiser, 0.5, 1.0, 1),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 4),
        ],
        milestones=[2],
    )
    average = [p.detach().double() for p in twin.parameters()]
    for step in range(6):
        optimiser.zero_grad()
        losses = [plain(twin.module, data[(2 * step + i) % 4]) for i in range(2)]
        torch.stack(losses).mean().backward()
        norm = nn.utils.clip_grad_norm_(list(twin.parameters()), 0.05)
        assert reports[step].norm == pytest.approx(float(norm), rel=1e-5)
        assert reports[step].loss == pytest.approx(float(torch.stack(losses).detach().mean()), rel=1e-5)
        assert reports[step].lr == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-6)
        optimiser.step()
        schedule.step()
        decay = min(0.5, (2 + step) / (11 + step))
        average = [
            decay * a + (1 - decay) * p.detach() for a, p in zip(average, twin.parameters(), strict=True)
        ]
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    with trainer.evaluated():
        for ours, mean in zip(net.parameters(), average, strict=True):
            torch.testing.assert_close(ours.double(), mean, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("constant", lambda x: 1.0),
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: math.cos(math.pi * x / 2) ** 2),
        ("rex", lambda x: 2 * (1 - x) / (2 - x)),
    ],
)
def test_schedules(name: str, formula: Callable[[float], float]) -> None:
    trainer = lyc.Trainer(network(), plain, lyc.TrainOptions(steps=10, lr=1.0, schedule=name, warmup=0.2))
    rates = [trainer.step(batch).lr for batch in batches(10)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:] == pytest.approx([formula(step / 8) for step in range(8)])
    again = lyc.TrainOptions(steps=10, lr=1.0, schedule=name, warmup=0.2, restarts=int(name != "constant"))
    trainer = lyc.Trainer(network(), plain, again)
    rates = [trainer.step(batch).lr for batch in batches(10)]
    assert rates[2:] == pytest.approx([formula(step / 4) for step in range(4)] * 2)
    # 15 / 22 * 22 is below 15 in floats.
    assert {schedule(name, 0, 44, restarts=21)(step) for step in range(0, 44, 2)} == {1.0}


@pytest.mark.parametrize("optimiser", ["adamw", "schedulefree"])
def test_a_validation_changes_nothing_and_its_chance_is_the_same(tmp_path: Path, optimiser: str) -> None:
    weights: list[list[Tensor]] = []
    for every in (None, 1):
        net = network("lokr", module_dropout=0.2)
        trainer = lyc.Trainer(
            net, noisy, options(tmp_path, optimiser=offered(optimiser)), validation=batches(3, seed=8)
        )
        for batch in batches(4):
            trainer.step(batch)
            if every:
                state = torch.get_rng_state()
                assert trainer.validate() == trainer.validate()
                assert torch.equal(state, torch.get_rng_state())
                assert net.training
        weights.append([parameter.detach().clone() for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where a shell runs the tests in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("call", range(4, 15, 3))
def test_an_interrupt_at_any_time_leaves_a_whole_checkpoint(tmp_path: Path, call: int) -> None:
    """The interrupt comes inside of the loss, in training or in validation, after the first step."""
    calls = 0

    def interrupted(module: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGINT)
        return noisy(module, batch)

    given: dict[str, Any] = {"steps": 5, "accumulation": 2, "validate_every": 2, "ema": 0.9}
    held_out = batches(1, seed=7)
    whole, broken = options(tmp_path / "a", **given), options(tmp_path / "b", **given)
    lyc.train_network(network(), loader(), noisy, whole, validation=held_out)
    rescued: list[tuple[Path, int]] = []
    with pytest.raises(KeyboardInterrupt):
        lyc.train_network(
            network(),
            loader(),
            interrupted,
            broken,
            validation=held_out,
            rescued=lambda path, steps: rescued.append((path, steps)),
        )
    # What is left holds the steps that were done.
    ((path, steps),) = rescued
    assert path == tmp_path / "b/out-checkpoints/last.safetensors"
    assert lyc.load_adapter(path).metadata["ss_steps"] == str(steps)
    lyc.train_network(network(), loader(), noisy, broken, validation=held_out, resume=broken.last_state)
    assert (tmp_path / "a/out.safetensors").read_bytes() == (tmp_path / "b/out.safetensors").read_bytes()


@pytest.mark.parametrize(("dialect", "output"), [("kohya", "out.v1.safetensors"), ("peft", "out.v1")])
def test_the_checkpoints_of_a_name_with_a_dot_have_a_folder_of_their_own(
    tmp_path: Path, dialect: Any, output: str
) -> None:
    given = options(tmp_path, steps=5, dialect=dialect, output=tmp_path / output)
    halted(2, network(), loader(), noisy, given)
    folder = tmp_path / "out.v1-checkpoints"
    assert given.folder == folder and (folder / "last.state.safetensors").is_file()
    assert lyc.train_network(network(), loader(), noisy, given, resume=folder).steps == 5


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_waits_for_the_end_of_an_update() -> None:
    trainer = lyc.Trainer(network(), plain, lyc.TrainOptions(steps=3))
    update = trainer.optimiser.step

    def slow() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        update()

    trainer.optimiser.step = slow  # pyright: ignore[reportAttributeAccessIssue]
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    with pytest.raises(KeyboardInterrupt):
        trainer.step(batches(1)[0])
    assert trainer.intact and trainer.done == 1
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))


def test_the_saved_adapter_is_the_trained_network_and_says_how_it_was_trained(tmp_path: Path) -> None:
    net = network("loha")
    settings = options(tmp_path, metadata={"ss_base_model_version": "tiny", "modelspec.author": "me"})
    result = lyc.train_network(net, batches(), plain, settings)
    assert result.output is not None and result.history.losses[-1][1] < result.history.losses[0][1]
    x = batches(1, seed=11)[0][0]
    with torch.no_grad():
        wanted = net.module(x)
    adapter = lyc.load_adapter(result.output)
    fresh = Model()
    for name, layer in adapter.layers.items():
        target = {"inner": fresh.inner, "norm": fresh.norm, "outer": fresh.outer}[name.rpartition("_")[2]]
        lyc.patch_(target.weight.data, [(layer, 1.0)])
        if isinstance(target, nn.LayerNorm):
            target.bias.data += layer.tensors()["b_norm"]
    torch.testing.assert_close(fresh(x), wanted, rtol=1e-4, atol=1e-5)
    text = adapter.metadata
    assert text["ss_network_module"] == "lycoris.kohya" and text["ss_network_dim"] == "2"
    assert text["ss_steps"] == "7" and text["ss_optimizer"] == "adamw" and text["ss_output_name"] == "out"
    assert text["ss_base_model_version"] == "tiny" and text["modelspec.title"] == "out"
    assert {"ss_v2", "ss_network_alpha", "ss_network_args"} <= text.keys()
    recipe = lyc.parse_json(text["lycoris_training"])
    assert recipe["options"]["steps"] == 7 and recipe["network"]["layers"]["inner"]["algorithm"] == "loha"


@pytest.mark.parametrize(
    ("trained", "module", "algo"),
    [("lora", "networks.lora", "lora"), ("oft", "lycoris.kohya", "diag-oft")],
)
def test_the_metadata_have_the_kinds_that_other_tools_know(trained: str, module: str, algo: str) -> None:
    net = lyc.create_lycoris(Model(), algorithm=trained, rank=2, exclude="norm")
    text = metadata_of_training(lyc.TrainOptions(steps=1), net, rate=1e-4, step=1, of=1, epoch=None)
    assert text["ss_network_module"] == module
    assert lyc.parse_json(text["ss_network_args"] or "") == {"algo": algo}
    recipe = lyc.parse_json(text["lycoris_training"] or "")
    assert recipe["network"]["layers"]["inner"]["algorithm"] == trained


def test_early_stop_best_checkpoint_curves_and_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    settings = options(
        tmp_path, steps=40, lr=0.3, validate_every=1, patience=3, log=tmp_path / "log", picture=True
    )
    result = lyc.train_network(network(), batches(2), plain, settings, validation=batches(1, seed=6))
    losses = [loss for _, loss in result.history.validation]
    assert result.stopped_early and losses.index(min(losses)) == len(losses) - 4
    assert (tmp_path / "out-curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((tmp_path / "log").iterdir())
    assert "; stopped early\n" in str(result)
    best = result.history.best
    assert best is not None and 0 < best[0] < 40
    adapter = lyc.load_adapter(tmp_path / "out-checkpoints/best.safetensors")
    assert adapter.metadata["ss_steps"] == str(best[0])


@pytest.mark.parametrize("optimiser", ["adamw", "schedulefree"])
def test_the_file_has_the_best_weights_and_the_first_line_says_how_bad_the_end_is(
    tmp_path: Path, optimiser: str
) -> None:
    """The model fits the held-out data with noise at first, and is spoilt by the rate later; a resumed run
    knows the best weights too."""
    offered(optimiser)
    given: dict[str, Any] = {"optimiser": optimiser, "steps": 30, "lr": 0.15, "validate_every": 1}
    given["ema"] = 0.5 if optimiser == "adamw" else None
    held_out = batches(4, seed=6)

    def measured(adapter: str | Path) -> float:
        net = lyc.create_lycoris(Model(), weights=str(adapter)).apply_to()
        with torch.no_grad():
            return float(np.mean([float(plain(net.module, batch)) for batch in held_out]))

    found: dict[str, lyc.TrainResult] = {}
    nets: dict[str, lyc.LycorisNetwork] = {}
    for saved in lyc.SAVED:
        nets[saved] = network()
        settings = options(tmp_path / saved, saved=saved, **given)
        found[saved] = lyc.train_network(nets[saved], batches(2), plain, settings, validation=held_out)
    best, last = found["best"], found["last"]
    losses = dict(best.history.validation)
    assert best.history == last.history and best.history.best
    step, lowest = best.history.best
    assert 0 < step < 30 and (best.saved, last.saved) == (step, 30)
    assert measured(best.output or "") == pytest.approx(lowest, rel=1e-5)
    assert measured(last.output or "") == pytest.approx(losses[30], rel=1e-5)
    # The network in memory has the weights of the file.
    with torch.no_grad():
        own = [float(plain(nets["best"].module, batch)) for batch in held_out]
    assert np.mean(own) == pytest.approx(lowest, rel=1e-5)
    assert lyc.load_adapter(best.output or "").metadata["ss_steps"] == str(step)
    bad, line = best.history.verdict(best.saved)
    assert bad and str(best).startswith(line)
    assert line.startswith(
        f"Held-out loss {losses[0]:.4g} before, {losses[30]:.4g} at the end, "
        f"{lowest:.4g} at best (step {step}). "
    )
    assert line.endswith(f". The adapter has the weights of step {step}")

    settings = options(tmp_path / "broken", **given)
    halted(step + 2, network(), batches(2), plain, settings, validation=held_out)
    lyc.train_network(network(), batches(2), plain, settings, validation=held_out, resume=settings.last_state)
    assert (tmp_path / "broken/out.safetensors").read_bytes() == Path(best.output or "").read_bytes()


def test_a_ruined_training_keeps_the_start_and_without_held_out_data_nothing_tells(tmp_path: Path) -> None:
    settings = options(tmp_path / "a", lr=1.0, rise=None)
    result = lyc.train_network(network(), batches(2), plain, settings, validation=batches(4, seed=6))
    bad, line = result.history.verdict(result.saved)
    assert bad and result.saved == 0 and result.history.validation[-1][1] > result.history.validation[0][1]
    assert "The end is worse than the start: try a lower learning rate" in line
    assert line.endswith("The adapter has the weights of the start")
    ups = [layer.tensors()["lora_up"] for layer in lyc.load_adapter(result.output or "").layers.values()]
    assert not any(bool(up.any()) for up in ups)
    result = lyc.train_network(network(), batches(2), plain, options(tmp_path / "b"))
    assert str(result).startswith("Nothing tells whether the model became better") and result.saved == 7


def test_the_start_is_the_best_only_beyond_the_noise() -> None:
    history = lyc.History()
    history.validated(0, [1.0, 1.0, 1.0, 1.0])
    history.validated(5, [1.1, 0.95, 1.05, 0.95])
    assert history.best == (5, pytest.approx(1.0125)) and not history.is_worse(5, 0)
    history.validated(6, [1.1, 1.12, 1.11, 1.1])
    assert (
        history.best == (5, pytest.approx(1.0125))
        and history.is_worse(6, 0)
        and set(history.draws) == {0, 5, 6}
    )
    other = lyc.History.of(history.state_dict())
    assert other == history
    history = lyc.History()
    history.validated(0, [1.0, 1.0])
    history.validated(5, [1.1, 1.11])
    assert history.best == (0, 1.0)
    # A step took the place of the start. A later one, better but surely worse than the start, takes it next.
    history = lyc.History()
    history.validated(0, [1.0, 1.0, 1.0])
    history.validated(1, [0.9, 1.2, 1.05])
    history.validated(2, [1.04, 1.05, 1.04])
    assert history.best == (2, pytest.approx(1.0433, abs=1e-4)) and history.is_worse(2, 0)
    assert history.waited == 0


@pytest.mark.parametrize("package", [True, False], ids=["tqdm", "without tqdm"])
def test_a_bar_shows_the_loss_the_speed_and_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: bool
) -> None:
    if package:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    settings = options(tmp_path, steps=4, validate_every=2, bar=True)
    lyc.train_network(network(), batches(2), plain, settings, validation=batches(1))
    shown = capsys.readouterr().err
    assert "4/4" in shown and re.search(r"loss[ =]\d", shown) and re.search(r"steps?/s", shown)
    assert re.search(r"held.out.*?[ =]\d", shown)
    assert re.search(r"\[\d\d:\d\d<" if package else r" 0 s left", shown)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
@pytest.mark.parametrize(("autocast", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_model_computes_in_less_and_the_weights_stay_float32(
    autocast: str, dtype: torch.dtype, optimiser: str
) -> None:
    seen: set[torch.dtype] = set()

    def loss(module: nn.Module, batch: Any) -> Tensor:
        found = module(batch[0])
        seen.add(found.dtype)
        return (found.float() - batch[1]).square().mean()

    net = network(exclude="norm")
    settings = lyc.TrainOptions(steps=8, autocast=autocast, lr=0.01, optimiser=offered(optimiser))
    trainer = lyc.Trainer(net, loss, settings)
    reports = [trainer.step(batch) for batch in batches(1) * 8]
    assert seen == {dtype} and {p.dtype for p in net.parameters()} == {torch.float32}
    assert reports[-1].loss < reports[0].loss
    text = metadata_of_training(settings, net, rate=0.01, step=8, of=8, epoch=1)
    assert text["ss_mixed_precision"] == autocast


def test_the_model_and_the_tensors_of_batches_are_moved() -> None:
    Pair = namedtuple("Pair", "x y")
    x = torch.zeros(2)
    found = moved({"pair": Pair(x, "a"), "list": [x, (x, 1)]}, "meta")
    assert isinstance(found["pair"], Pair) and found["pair"].y == "a" and found["list"][1][1] == 1
    assert all(one.is_meta for one in (found["pair"].x, found["list"][0], found["list"][1][0]))
    assert moved(x, None) is x
    trainer = lyc.Trainer(network(), plain, lyc.TrainOptions(steps=1, device="meta"))
    assert trainer.device.type == "meta" and all(one.is_meta for one in trainer.net.module.parameters())


def test_scaled_gradients_that_are_too_large_skip_the_step_and_say_so() -> None:
    def large(module: nn.Module, batch: Any) -> Tensor:
        return module(batch[0]).float().sum() * 100

    trainer = lyc.Trainer(network(), large, lyc.TrainOptions(steps=20, autocast="fp16"))
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    assert trainer.step(batches(1)[0]).skipped
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))
    assert any(not trainer.step(batches(1)[0]).skipped for _ in range(19))


def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights(tmp_path: Path) -> None:
    data = batches(4)
    seen: list[list[Tensor]] = []

    def loss(module: nn.Module, batch: Any) -> Tensor:
        seen.append([parameter.detach().clone() for parameter in net.parameters()])
        found = plain(module, batch)
        return found * (math.nan if len(seen) == 4 else 1.0)

    net = network("lokr")
    with pytest.raises(lyc.DivergedError, match=r"the loss is nan in step 4.*lower learning rate") as caught:
        lyc.train_network(net, data, loss, options(tmp_path))
    # All outputs are finite: the loss itself is not, and the last layer is the nearest to it.
    assert caught.value.key == "outer.lokr_w2"
    assert all(torch.equal(a, b) for a, b in zip(seen[2], net.parameters(), strict=True))
    assert caught.value.file is not None and len(lyc.load_adapter(caught.value.file).layers) == len(
        net.members
    )


def test_a_gradient_that_is_not_finite_names_its_layer(tmp_path: Path) -> None:
    net = network(exclude="norm")

    def loss(module: nn.Module, batch: Any) -> Tensor:
        # The derivative of the root is infinite at 0, where `up` of the last layer starts.
        member = net.members["outer"]
        return plain(module, batch) + member.layer.tensors()["lora_up"].abs().sqrt().sum()

    with pytest.raises(lyc.DivergedError, match=r"the norm of the gradients is .* in step 1") as caught:
        lyc.train_network(net, batches(), loss, options(tmp_path))
    assert caught.value.key == "outer.lora_up"


def test_a_full_disk_at_a_checkpoint_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = options(tmp_path, checkpoint_every=1)
    sync = os.fsync
    calls = 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        # Two files of the first checkpoint, then no room for any more, for `last` neither.
        if calls > 4:
            raise OSError(errno.ENOSPC, "full")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(lyc.WriteError, match="the disk is full"):
        lyc.train_network(network(), batches(), plain, settings)
    monkeypatch.undo()
    found = sorted(file.name for file in (tmp_path / "out-checkpoints").iterdir())
    assert found == ["step-000001.safetensors", "step-000001.state.safetensors"]
    lyc.train_network(
        network(),
        batches(),
        plain,
        settings,
        resume=tmp_path / "out-checkpoints/step-000001.state.safetensors",
    )
    lyc.train_network(network(), batches(), plain, options(tmp_path / "b"))
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "b/out.safetensors").read_bytes()


def test_batches_may_be_a_function_of_the_epoch_or_an_iterator(tmp_path: Path) -> None:
    epochs: list[int] = []

    def of(epoch: int) -> list[Any]:
        epochs.append(epoch)
        return batches(2, seed=epoch)

    lyc.train_network(network(), of, plain, options(tmp_path, output=None, steps=5))
    assert epochs == [0, 1, 2]
    result = lyc.train_network(network(), of, plain, options(tmp_path, output=None, steps=None, epochs=2))
    assert (result.steps, result.epochs) == (4, 2)
    result = lyc.train_network(network(), iter(batches(3)), plain, options(tmp_path, output=None, steps=3))
    assert result.steps == 3


def test_a_training_may_be_called_from_inference_mode(tmp_path: Path) -> None:
    data = batches()
    net, twin = network(), network()
    with torch.inference_mode():
        lyc.train_network(net, data, plain, options(tmp_path, output=None), validation=data[:1])
    lyc.train_network(twin, data, plain, options(tmp_path, output=None), validation=data[:1])
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_modules_that_the_loss_does_not_use_are_named(tmp_path: Path) -> None:
    def part(module: Any, batch: Any) -> Tensor:
        return module.inner(batch[0]).square().mean()

    result = lyc.train_network(network(exclude="norm"), batches(), part, options(tmp_path, output=None))
    assert set(result.idle) == {"outer.lora_up", "outer.lora_down"} and "outer.lora_up" in str(result)


def test_running_statistics_and_modes_of_the_model_stay(tmp_path: Path) -> None:
    base = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 4))
    base[2].eval()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    seen: set[bool] = set()

    def loss(module: Any, batch: Any) -> Tensor:
        seen.add(module[1].training)
        return plain(module, batch)

    net = lyc.create_lycoris(base, rank=2, seed=0)
    settings = options(tmp_path, validate_every=2)
    lyc.train_network(net, batches(), loss, settings, validation=batches(1))
    assert seen == {False} and base[1].training and not base[2].training and base[3].training
    net.restore()
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())


def test_a_training_that_replaces_another_leaves_none_of_its_checkpoints(tmp_path: Path) -> None:
    """Else a run that was killed at its start would be resumed from those of the earlier one."""
    lyc.train_network(network(), batches(), plain, options(tmp_path, steps=6, checkpoint_every=3))
    folder = tmp_path / "out-checkpoints"
    (folder / "notes.txt").write_text("kept")
    again = options(tmp_path, steps=4, checkpoint_every=2, keep=1, overwrite=True)
    halted(3, network(), batches(), plain, again)
    names = {file.name.partition(".")[0] for file in folder.iterdir()}
    assert names == {"step-000002", "last", "notes"}
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "last.safetensors").write_text("somebody's own")
    with pytest.raises(lyc.WriteError, match="the checkpoints of another training"):
        lyc.train_network(
            network(), batches(), plain, options(tmp_path, output=None, checkpoints=folder, steps=2)
        )


@pytest.mark.parametrize("name", ["last", "the log"])
def test_what_fails_after_the_last_step_loses_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the last checkpoint is written, and a log that cannot be closed."""
    error: BaseException = KeyboardInterrupt() if name == "last" else OSError(28, "no space left")
    once = [error]

    def failing(*args: Any) -> None:
        if once:
            raise once.pop()

    if name == "last":
        save = Trainer.save
        monkeypatch.setattr(Trainer, "save", lambda *args: (failing(), save(*args)))
    else:
        monkeypatch.setattr(Lines, "close", failing)
        monkeypatch.setattr(progress, "has", lambda _: False)
    settings, out = options(tmp_path, bar=True), tmp_path / "out.safetensors"
    with pytest.raises(type(error)):
        lyc.train_network(network(), batches(), plain, settings)
    assert out.exists() == (name != "last")
    assert settings.last_state is not None
    result = lyc.train_network(network(), batches(), plain, settings, resume=settings.last_state)
    assert result.steps == settings.steps and out.exists()


def test_values_that_the_dtype_of_the_file_does_not_hold_leave_the_state(tmp_path: Path) -> None:
    net = network()
    with torch.no_grad():
        net.members["outer"].lora_up.fill_(1e6)
    settings = options(tmp_path, dtype=torch.float16, clip_norm=None)
    with pytest.raises(lyc.WriteError, match="does not fit"):
        lyc.train_network(net, batches(), plain, settings)
    assert settings.last_state is not None
    wider = options(tmp_path, clip_norm=None)
    result = lyc.train_network(network(), batches(), plain, wider, resume=settings.last_state)
    assert result.steps == settings.steps


def test_a_loss_that_fails_when_it_is_called_again_hides_nothing(tmp_path: Path) -> None:
    calls: list[int] = []

    def loss(module: nn.Module, batch: Any) -> Tensor:
        calls.append(0)
        if len(calls) > 3:
            raise RuntimeError("no third batch")
        return plain(module, batch) * (math.nan if len(calls) == 3 else 1.0)

    with pytest.raises(lyc.DivergedError, match="the loss is nan in step 3"):
        lyc.train_network(network(), batches(), loss, options(tmp_path))
    names = {file.name for file in (tmp_path / "out-checkpoints").iterdir()}
    assert names == {"last-good.safetensors"}


@pytest.mark.parametrize("where", ["norm", "inner"])
def test_a_nan_of_the_forward_pass_names_the_module_that_made_it(where: str, tmp_path: Path) -> None:
    net = network(exclude="norm")
    calls: list[int] = []

    def spoil(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        calls.append(0)
        return output * math.nan if len(calls) >= 3 else output

    net.module.get_submodule(where).register_forward_hook(spoil)
    with pytest.raises(lyc.DivergedError, match=rf"^.*{where}: the loss is nan in step 3"):
        lyc.train_network(net, batches(), plain, options(tmp_path))


def test_what_is_in_the_way_is_found_before_the_first_step(tmp_path: Path) -> None:
    """PEFT's configuration alone counts as much as the adapter itself."""
    (tmp_path / "out").mkdir()
    taken = tmp_path / "out" / "adapter_config.json"
    taken.write_text("{}")

    given = replace(options(tmp_path, steps=2), output=tmp_path / "out", dialect="peft")
    with pytest.raises(lyc.WriteError, match=r"adapter_config\.json"):
        lyc.train_network(network(), batches(), never, given)
    assert taken.read_text() == "{}" and len(list(tmp_path.rglob("*"))) == 2


def vector(module: nn.Module, batch: Any) -> Tensor:
    return (module(batch[0]) - batch[1]).square().mean(0)


def number(module: nn.Module, batch: Any) -> Any:
    return float(plain(module, batch))


def detached(module: nn.Module, batch: Any) -> Tensor:
    return plain(module, batch).detach()


def beside(module: nn.Module, batch: Any) -> Tensor:
    return torch.ones(2, requires_grad=True).sum()


def empty() -> Iterator[Any]:
    return iter(())


@pytest.mark.parametrize(
    ("data", "loss", "given", "message"),
    [
        (batches(), vector, {}, r"the loss is not a scalar \(found torch.float32 \[4\]"),
        (batches(), number, {}, r"the loss is not a scalar \(found float"),
        (batches(), detached, {}, "the loss does not depend on the network"),
        ([], plain, {}, "there are no batches"),
        (iter(batches(3)), plain, {}, r"the batches ended before the steps \(found 3 batches"),
        (batches(1), plain, {"optimiser": "adamv"}, "an unknown optimiser.*Is it adamw"),
        (batches(1), plain, {"optimiser": "nowhere:Adam"}, "pip install nowhere"),
        (batches(1), plain, {"optimiser_options": {"betes": 1}}, "found betes; .*Is it betas\\?"),
        (batches(1), plain, {"optimiser_options": {"betas": (2, 2)}}, "refuses its options"),
        (batches(1), plain, {"optimiser": "prodigy", "lr": 0.1}, "itself.*Leave the rate to it"),
        (batches(1), plain, {"optimiser": "prodigy", "lr": None, "lora_plus": 4.0}, "rates of 1, 4"),
        (batches(1), plain, {"optimiser": "schedulefree", "ema": 0.9}, "ema 0.9; .*constant, and no ema"),
        (batches(1), plain, {"schedule": "cosinus"}, "an unknown schedule.*Is it cosine"),
        (iter(batches(3)), plain, {"steps": None, "epochs": 1}, "cannot be counted"),
        ([], plain, {"steps": None, "epochs": 1}, "there are no batches"),
        ([], plain, {"search": "all"}, "there are no batches"),
        (batches(1), beside, {}, "the loss does not depend on the network .*none of the network's 4 tensors"),
        (batches(1), plain, {"patience": 1, "validate_every": 1}, "an early stop needs batches"),
        (batches(1), plain, {"optimiser": "torch.optim:LBFGS"}, "needs the loss computed again"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_with(
    tmp_path: Path, data: Any, loss: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(lyc.TrainError, match=message):
        lyc.train_network(network(), data, loss, options(tmp_path, **given))
    # What was not begun leaves nothing that the next run would find in its way.
    assert bool(list(tmp_path.iterdir())) == ("found 3 batches" in message)


def test_a_pass_that_leaves_out_every_layer_is_no_error(tmp_path: Path) -> None:
    net = network(include="outer", module_dropout=0.9)
    assert lyc.train_network(net, batches(), plain, options(tmp_path, steps=9)).steps == 9
    net = network(module_dropout=0.5)
    with pytest.raises(lyc.TrainError, match="a tensor without a graph"):
        lyc.train_network(
            net, batches(), lambda *given: plain(*given).detach(), lyc.TrainOptions(steps=9, bar=False)
        )


def test_a_folder_is_claimed_while_a_training_runs_in_it(tmp_path: Path) -> None:
    given = options(tmp_path, steps=2)
    folder = given.folder
    assert folder is not None
    claim = folder / "running.json"
    code = (
        "import sys, pathlib, lycoris_ops as lyc\n"
        "with lyc.claimed(pathlib.Path(sys.argv[1])):\n print('claimed', flush=True)\n sys.stdin.read()"
    )
    for kill in (False, True):
        words = [sys.executable, "-c", code, str(folder)]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, env=child_environment(), stdin=pipe, stdout=pipe) as other:
            assert other.stdout is not None and other.stdout.readline() == b"claimed\n"
            assert lyc.running_in(folder)
            with pytest.raises(lyc.WriteError, match=rf"runs in this folder now .*process {other.pid} on"):
                lyc.train_network(network(), batches(), never, given)
            if kill:
                other.kill()
        assert claim.exists() is kill and lyc.running_in(folder) is None
    # A claim of another machine counts until it gives no sign of life, by the clock of the drive.
    claim.write_text(json.dumps({"host": "another", "process": os.getpid(), "began": "today"}))
    with pytest.raises(lyc.WriteError, match="on another, since today"):
        lyc.train_network(network(), batches(), never, given)
    now = claim.stat().st_mtime
    os.utime(claim, (now - 61, now - 61))

    def loss(module: nn.Module, batch: Any) -> Tensor:
        assert lyc.running_in(folder)
        return plain(module, batch)

    assert lyc.train_network(network(), batches(), loss, given).steps == 2
    assert not claim.exists()


def test_a_folder_that_a_killed_training_made_goes_with_the_next_that_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out-checkpoints"
    code = (
        "import os, pathlib, sys, lycoris_ops as lyc\n"
        "with lyc.claimed(pathlib.Path(sys.argv[1])):\n os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], env=child_environment(), check=False)
    assert lyc.is_vacant(folder)
    with lyc.claimed(folder):
        assert not lyc.is_vacant(folder)
    assert not folder.exists() and not lyc.is_vacant(folder)


def test_a_folder_that_was_there_before_a_failed_start_stays(tmp_path: Path) -> None:
    given = options(tmp_path)
    assert given.folder is not None
    given.folder.mkdir()
    with pytest.raises(lyc.TrainError, match="there are no batches"):
        lyc.train_network(network(), [], plain, given)
    assert given.folder.is_dir()


def test_a_model_without_values_is_refused() -> None:
    lazy = lyc.create_lycoris(nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4)), rank=1)
    with pytest.raises(
        lyc.TrainError, match=r"^1\.weight: .* without a shape.*Call the model with one batch"
    ):
        lyc.train_network(lazy, batches(), never, lyc.TrainOptions(steps=1, bar=False))
    net = lyc.create_lycoris(nn.Sequential(nn.Linear(4, 4, device="meta")), rank=1)
    for given in ({}, {"device": "cpu"}, {"search": "rate"}):
        with pytest.raises(lyc.TrainError, match=r"^0: the values of a weight are not in memory.*Load the"):
            lyc.train_network(net, batches(), never, lyc.TrainOptions(steps=20, bar=False, **given))


def test_a_dialect_that_cannot_hold_the_layers_is_refused_before_the_first_step(tmp_path: Path) -> None:
    settings = options(tmp_path, output=tmp_path / "out", dialect="peft")
    with pytest.raises(lyc.LayerError, match="peft holds no oft"):
        lyc.train_network(network("oft"), batches(), never, settings)
    with pytest.raises(lyc.LycorisError, match=r"unknown dialect.*koyha.*kohya, comfy, peft"):
        lyc.train_network(network(), batches(), never, replace(settings, dialect="koyha"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given",
    [{}, {"steps": 1, "epochs": 1}, {"steps": 0}, {"steps": 1, "lr": -1.0}, {"steps": 1, "ema": 1.0},
     {"steps": 1, "autocast": "fp8"}, {"steps": 1, "warmup": 1.5}, {"steps": 1, "patience": 2},
     {"steps": True}, {"steps": 1, "clip_norm": math.nan}, {"steps": 1, "lr": "high"},
     {"steps": 1, "dtype": "bf16"}, {"steps": 1, "dtype": torch.int8}, {"steps": 1, "accumulation": None},
     {"steps": 1, "metadata": {"ss_tag": 1}}, {"steps": 1, "optimiser_options": {"weight_decay": 1.0}},
     {"steps": 1, "checkpoint_every": 1}, {"steps": 1, "optimiser": None}, {"steps": 1, "restarts": 2}],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range(given: dict[str, Any]) -> None:
    with pytest.raises(lyc.TrainError):
        lyc.TrainOptions(**given)


def test_small_dtypes_are_refused() -> None:
    with pytest.raises(lyc.TrainError, match="small steps are lost"):
        lyc.Trainer(network().to(torch.bfloat16), plain, lyc.TrainOptions(steps=1))


def test_a_state_is_for_one_model_one_network_and_one_optimiser(tmp_path: Path) -> None:
    settings = options(tmp_path, steps=2)
    lyc.train_network(network(), batches(), plain, settings)
    state = settings.last_state
    assert state is not None

    def resumed(net: lyc.LycorisNetwork, **given: Any) -> None:
        lyc.train_network(net, batches(), plain, options(tmp_path, **given), resume=state)

    with pytest.raises(lyc.MatchError, match=r"outer: the state is for another network.*lora.*loha"):
        resumed(network(overrides={"outer": {"algorithm": "loha"}}))
    with pytest.raises(lyc.MatchError, match=r"the state is for another network.*alpha 2.*alpha 1"):
        resumed(network(alpha=1))
    other = network()
    other.module.outer.weight.data[0, 0] += 1  # pyright: ignore
    with pytest.raises(lyc.MatchError, match=r"outer.weight: the state is for another model"):
        resumed(other)
    with pytest.raises(lyc.TrainError, match=r"optimiser: the state .* \(found adamw; expected sgd\)"):
        resumed(network(), optimiser="sgd")
    with pytest.raises(lyc.TrainError, match=r"seed: .*other settings"):
        resumed(network(), seed=6)
    # The finished file stays as it is.
    file = (tmp_path / "out.safetensors").read_bytes()
    with pytest.raises(lyc.TrainError, match=r"steps: the state .*more steps.*found 1; expected at least 2"):
        resumed(network(), steps=1)
    assert (tmp_path / "out.safetensors").read_bytes() == file
    with pytest.raises(lyc.FileFormatError, match="not the state of a training"):
        lyc.train_network(network(), batches(), plain, settings, resume=tmp_path / "out.safetensors")
    with pytest.raises(lyc.WriteError, match="already"):
        lyc.train_network(network(), batches(), plain, settings)
    with pytest.raises(lyc.WriteError, match="checkpoints of another training"):
        lyc.train_network(
            network(), batches(), plain, options(tmp_path, output=None, checkpoints=state.parent)
        )


def test_a_loss_that_rises_for_a_while_stops_with_the_weights_from_before(tmp_path: Path) -> None:
    """At a rate that is too high, at the second check in a row, also where a run was resumed between them."""
    settings = options(tmp_path, steps=200, lr=30.0, optimiser="sgd", clip_norm=1.0)
    with pytest.raises(
        lyc.DivergedError, match=r"makes the model worse: .*its loss in step 50 .*the check before"
    ) as caught:
        lyc.train_network(network(), batches(), noisy, settings)
    # A slider has no search that it could name.
    words = str(caught.value)
    assert words.endswith("a tenth of the learning rate") and "at a rate of 30" in words
    assert caught.value.file is not None
    fresh, kept = (
        [tensor for layer in adapter.layers.values() for tensor in layer.tensors().values()]
        for adapter in (network().to_adapter(), lyc.load_adapter(caught.value.file))
    )
    assert all(torch.equal(one, other) for one, other in zip(fresh, kept, strict=True))
    trainer = Trainer(network(), noisy, settings)
    data = batches()
    for step in range(30):
        trainer.step(data[step % len(data)])
    trainer.save_state(tmp_path / "half.state.safetensors")
    again = Trainer(network(), noisy, settings)
    again.load_state(tmp_path / "half.state.safetensors")
    with pytest.raises(lyc.DivergedError, match="in step 50"):
        for step in range(30, 60):
            again.step(data[step % len(data)])


def test_a_training_too_short_for_two_checks_says_that_its_loss_has_risen(tmp_path: Path) -> None:
    settings = options(tmp_path, steps=20, lr=30.0, optimiser="sgd")
    result = lyc.train_network(network(), batches(), noisy, settings)
    assert result.history.verdict(20) == (True, str(result).splitlines()[0])
    assert str(result).startswith("The model became worse: relative to the model alone, the loss is ")
    state = lyc.newest_state(tmp_path / "out-checkpoints")
    assert state and state.history().risen == result.history.risen


def test_one_unlucky_noise_is_no_rise(tmp_path: Path) -> None:
    """At a third of the noises the model alone has nearly no loss, as a diffusion model at some times."""

    def lucky(module: nn.Module, batch: Any) -> Tensor:
        given, wanted = batch[0][:1], batch[1][:1]
        easy = bool(torch.rand(()) < 1 / 3)
        return (module(given) - (base(given) if easy else wanted)).square().mean() + 1e-6

    base = Model().requires_grad_(requires_grad=False)
    for seed in range(6):
        settings = options(tmp_path, output=None, steps=150, seed=seed)
        result = lyc.train_network(network(), batches(), lucky, settings)
        assert result.history.risen is None, seed


def test_checks_for_a_rise_change_nothing(tmp_path: Path) -> None:
    made = [
        lyc.train_network(network(), batches(), noisy, options(tmp_path / str(rise), steps=60, rise=rise))
        for rise in (None, 1.5)
    ]
    assert made[0].history.losses == made[1].history.losses
