"""The bookkeeping of `make bench-quality`, on a task that takes a moment. No quality is tested."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.quality.curves import entries, loss_at, reached
from benchmarks.quality.graph import shapes
from benchmarks.quality.graph.page import section
from benchmarks.quality.graph.rows import RECIPE, Key, Row, add, read
from benchmarks.quality.method import LARGE, SMALL, rank_one
from benchmarks.quality.methods import ours, planned, whole
from benchmarks.quality.regret import between
from benchmarks.quality.results import Result, Results, Run
from benchmarks.quality.run import METHODS as ROWS
from benchmarks.quality.run import TASKS, Bench, OutOfTimeError, stage
from benchmarks.quality.search import best
from benchmarks.quality.task import Split, Task, digest, frozen, held_out, sites
from benchmarks.quality.tasks.characters import CHARACTERS


@dataclass(frozen=True)
class Tiny:
    """Train a convolution and two linear layers to match a copy with other weights."""

    name: str = "tiny"
    steps: Mapping[str, int] = field(default_factory=lambda: {"short": 16, "long": 32}, hash=False)
    held_out_batches: Mapping[str, int] = field(default_factory=lambda: {"tune": 1, "test": 2}, hash=False)
    preset: str = "full"
    exclude: tuple[str, ...] = ()
    untuned: ClassVar[bool] = False

    def network(self, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return frozen(
                nn.Sequential(
                    nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(24, 12), nn.SiLU(), nn.Linear(12, 5)
                )
            )

    def base(self) -> nn.Module:
        return self.network(0)

    def batches(self, seed: int, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        wanted = self.network(1)
        while True:
            x = torch.randn(8, 2, 4, 4, generator=generator)
            yield x, wanted(x)

    def loss(self, module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(module(batch[0]), batch[1])


TASK = Tiny()
ALL = {
    method.name: replace(method, sizes=method.sizes[-1:], long=method.sizes[-1:], tasks=None)
    for method in ROWS
    # Some are for linear layers alone.
    if method.tasks is None or method.tasks in (LARGE, SMALL)
}
METHODS = tuple(ALL[name] for name in ("LoRA", planned.LORA, "fine-tuning", "PEFT AdaLoRA"))
"""Methods whose learning rates are searched for."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of some methods on the task, at their best rates and three seeds."""
    file = tmp_path_factory.mktemp("quality") / "results.jsonl"
    bench = Bench(Results(file), commit="none")
    for name in ("coarse", "seeds"):
        stage(bench, name, (TASK,), METHODS)
    return file


def test_every_method_has_three_seeds_at_a_rate_between_two_others(file: Path) -> None:
    found = entries(Results(file), [digest(TASK)])
    assert [entry.method for entry in found] == [method.name for method in METHODS]
    start = held_out(TASK, TASK.base(), "test")
    for entry in found:
        assert entry.seeds == 3, entry
        assert not entry.edge, entry
        assert len(entry.curve) == 6
        assert entry.curve[-1] == (16, pytest.approx(entry.loss))
        assert entry.loss < start, entry


def test_the_number_of_parameters_is_that_of_the_method(tmp_path: Path) -> None:
    """Every method, at its largest size."""
    shapes = [site.shape for site in sites(TASK, TASK.base()).values()]
    assert shapes == [(6, 2, 3, 3), (12, 24), (5, 12)]
    one = (6 + 18) + (12 + 24) + (5 + 12)
    assert rank_one(sites(TASK, TASK.base())) == one
    bench = Bench(Results(tmp_path / "results.jsonl"))
    found = {
        name: bench.result(TASK, method, "short", method.sizes[0], -8, 0).numbers
        for name, method in ALL.items()
    }
    # No rank is above what a layer can use: 6, 12 and 5.
    expected = {
        "LoRA": 6 * (6 + 18) + 12 * (12 + 24) + 5 * (5 + 12),
        "DoRA": 4 * one + 6 + 12 + 5,
        "DoRA, search rate": 4 * one + 6 + 12 + 5,
        "LoHa": 2 * 2 * one,
        "LoRA, gradient": 4 * one,
        "fine-tuning": 6 * 18 + 12 * 24 + 5 * 12,
        "PEFT LoRA": 4 * one,
        # Blocks of at most 12: one for each layer.
        "OFT": 6 * 6 + 12 * 12 + 5 * 5,
    }
    assert {name: found[name] for name in expected} == expected
    # kron of (2, 1) and (3, 2, 3, 3), of (3, 4) and (4, 6), of (1, 3) and (5, 4).
    assert ours.lokr_numbers(shapes, 4) == (2 + 54) + (12 + 24) + (3 + 20)
    assert bench.result(TASK, ALL["LoKr"], "short", 1.0, -8, 0).numbers == ours.lokr_numbers(shapes, 4)
    # AdaLoRA keeps 3 x 4 ranks in all, each with a singular value; on which layers is not known.
    assert 3 * 4 * (5 + 12 + 1) <= found["PEFT AdaLoRA"] <= 3 * 4 * (12 + 24 + 1)
    for name in ALL.keys() - expected.keys() - {"LoKr", "PEFT AdaLoRA"}:
        # A LoKr has at most 126 numbers here.
        least = min(126, 0.8 * ALL[name].sizes[0] * one)
        assert least <= found[name] <= ALL[name].sizes[0] * one, name


def test_what_was_trained_is_not_trained_again(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    stage(Bench(Results(file), until=-math.inf), "seeds", (TASK,), METHODS)
    assert file.read_text(encoding="utf-8") == text
    with pytest.raises(OutOfTimeError):
        stage(Bench(Results(file), until=-math.inf), "long", (TASK,), METHODS)


def test_a_killed_run_goes_on_and_gives_the_same_figures(file: Path, tmp_path: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    copy = tmp_path / "results.jsonl"
    copy.write_text("".join(lines[:-1]) + lines[-1][:40], encoding="utf-8")
    results = Results(copy)
    assert len(results) == len(lines) - 1
    stage(Bench(results, commit="none"), "seeds", (TASK,), METHODS)
    again = copy.read_text(encoding="utf-8").splitlines(keepends=True)
    assert again[:-1] == lines[:-1]
    timed = "step_seconds", "start_seconds"
    first, second = (
        {key: value for key, value in json.loads(line).items() if key not in timed}
        for line in (lines[-1], again[-1])
    )
    assert first == second


def test_a_diverged_training_is_kept_as_one(tmp_path: Path) -> None:
    bench = Bench(Results(tmp_path / "results.jsonl"))
    found = bench.result(TASK, whole.METHODS[0], "short", 0, 80, 0)
    assert found.test == found.tune == math.inf
    assert Results(tmp_path / "results.jsonl").get(found.run) == found


@pytest.mark.parametrize("start", [-8, 0, 3])
@pytest.mark.parametrize("width", [1, 2])
def test_the_search_ends_between_two_worse_rates(start: int, width: int) -> None:
    tried: list[int] = []

    def measure(step: int) -> float:
        assert step not in tried, "measured twice"
        tried.append(step)
        return math.inf if step > 2 else abs(step + 3.2)

    found = best(measure, start, width)
    assert abs(found + 3.2) <= width / 2 + 0.2 + (width == 2)
    assert {found - width, found + width} <= set(tried)


def test_numbers_for_a_loss_are_interpolated_in_their_logarithm() -> None:
    points = [(100.0, 0.5), (1000.0, 0.4), (2000.0, 0.45), (10000.0, 0.2)]
    assert reached(points, 0.45, logarithmic=True) == ("", pytest.approx(100 * 10**0.5))
    assert reached(points, 0.3, logarithmic=True) == ("", pytest.approx(1000 * 10**0.5))
    assert reached(points, 0.3, logarithmic=False) == ("", pytest.approx(5500))
    assert reached(points, 0.6, logarithmic=True) == ("<", 100)
    assert reached(points, 0.5, logarithmic=True) == ("", 100)
    assert reached(points, 0.1, logarithmic=True) == (">", 10000)
    assert reached([(10.0, math.inf), (20.0, 1.0)], 1.5, logarithmic=True) == ("", pytest.approx(20))


def test_a_loss_is_interpolated_but_not_extrapolated() -> None:
    points = [(100.0, 0.5), (10000.0, 0.3)]
    assert loss_at(points, 1000) == pytest.approx(0.4)
    assert loss_at(points, 10000) == 0.3
    assert loss_at(points, 101) == points[0][1] and loss_at(points, 90) is None


def test_the_best_rate_is_chosen_on_the_split_for_it() -> None:
    def result(step: int, seed: int, tune: float, test: float) -> Result:
        run = Run("t", "r", "short", "m", 1, step, seed)
        return Result(run, 10, tune, test, [(4, 2 * test), (8, test)], 0.1, 0.0, "none")

    found = entries(
        [result(-4, 0, 0.3, 0.1), result(-2, 0, 0.2, 0.6), result(-2, 1, 0.9, 0.4), result(0, 0, 0.4, 0.2)],
        ["r"],
    )
    assert len(found) == 1
    assert (found[0].lr, found[0].seeds, found[0].edge) == (pytest.approx(10**-0.5), 2, False)
    assert found[0].loss == pytest.approx(0.5)
    assert found[0].spread == pytest.approx(0.02**0.5)
    assert found[0].curve == ((4, pytest.approx(1.0)), (8, pytest.approx(0.5)))


def test_tasks_have_one_place_each() -> None:
    names = [task.name for task in TASKS]
    assert sorted(names) == sorted((*LARGE, *SMALL))
    assert [task.name for task in TASKS if task.untuned] == ["characters", "series"]
    assert len({digest(task) for task in TASKS}) == len(TASKS)


UNSURE = {
    "characters": math.log(len(CHARACTERS)),
    "series": math.log(64),
    "digits": math.log(10),
    # The mean square of the velocity: of the noise (1), plus of the pictures (about 0.5).
    "flow": 1.5,
    "table": math.log(32),
}
"""The loss of a model that has learned nothing, on each task with a small base of the benchmark's own."""


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in TASKS if task.name in SMALL], ids=lambda task: task.name)
def test_a_base_is_trained_and_its_batches_are_those_of_their_seed(task: Task) -> None:
    """Trains the base, a minute each, where no earlier run has."""
    base = task.base()
    known = list(islice(task.base_batches(), 4))
    with torch.no_grad():
        own = sum(float(task.loss(base, batch)) for batch in known) / len(known)
    assert own < 0.8 * UNSURE[task.name]
    assert own < held_out(task, base, "tune"), "the new domain is no harder than the base's own"
    first, same, other = (
        [str(batch) for batch in islice(task.batches(seed, "train"), 3)] for seed in (0, 0, 1)
    )
    assert first == same and first != other


def test_drawn_pictures_follow_their_seed_and_kind() -> None:
    plain, kinds = shapes.drawn(40, 1, hatched=False)
    assert plain.shape == (40, 1, 32, 32) and kinds.bincount().tolist() == [10] * 4
    assert torch.equal(plain, shapes.drawn(40, 1, hatched=False)[0])
    assert not torch.equal(plain, shapes.drawn(40, 2, hatched=False)[0])
    hatched, same = shapes.drawn(40, 1, hatched=True)
    assert torch.equal(kinds, same) and hatched.min() >= -1 and hatched.max() <= 1
    inside = plain > 0
    assert plain.min() == -1 and plain.max() == 1
    # Shapes are bright on black, or dark on bright, and fill at most half of a picture.
    assert hatched[plain == 1].max() < 0 < hatched[plain == -1].mean() and 0.05 < inside.float().mean() < 0.5
    # A disc is the largest of the shapes of one size.
    area = [float(inside[kinds == kind].float().mean()) for kind in range(4)]
    assert max(area) == area[0] and all(area)
    folded = shapes.latents(plain)
    assert folded.shape == (40, 16, 8, 8)
    assert torch.equal(folded[0, :, 0, 0].view(4, 4), plain[0, 0, :4, :4])


def test_trainings_by_nodes_are_compared_with_a_lora_by_hand(tmp_path: Path) -> None:
    """Each at its best rate on "tune", by the steps and the size that it needs for the loss of the LoRA."""
    file = tmp_path / "results.jsonl"
    losses = {
        ("LoRA by hand", 4, -8): (4000, (0.8, 0.6, 0.4)),
        ("LoRA by hand", 4, -6): (4000, (0.9, 0.9, 0.1)),
        ("plan", 1, -8): (1000, (0.9, 0.7, 0.6)),
        ("plan", 4, -8): (4000, (0.7, 0.4, 0.2)),
        ("search all", 4, None): (3000, (0.9, 0.8, 0.7)),
    }
    for (way, size, step), (numbers, ends) in losses.items():
        for steps, loss in zip((60, 120, 240), ends, strict=True):
            key = Key(RECIPE, way, size, step, steps, 0)
            add(Row(key, numbers, 2.0, loss, loss, loss, 1.0, "", "a machine"), file)
    text = section(read(file))
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert [line[:4] for line in cells[2:]] == [
        ["LoRA by hand", "x 4", "4.0 k", "1.0e-02 (edge)"],
        ["plan", "x 1", "1.0 k", "1.0e-02 (edge)"],
        ["plan", "x 4", "4.0 k", "1.0e-02 (edge)"],
        ["search all", "x 4", "3.0 k", "its own"],
    ]
    # The LoRA's loss is 0.6. "plan" x 4 reaches it between 60 steps (0.7) and 120 (0.4), x 1 after 240.
    assert [line[8:10] for line in cells[2:]] == [
        ["120", "1.00"],
        ["240", f"{4 ** (1 / 3) / 4:.2f}"],
        [f"{60 * 2 ** (1 / 3):.0f}", ""],
        ["over 240", "over 0.75"],
    ]


def test_a_loss_at_the_usual_rate_lies_between_those_that_were_tried() -> None:
    tried = {-8: 1.0, -6: 4.0, -4: 2.0}
    assert between(tried, -7) == pytest.approx(2.0)
    assert between(tried, -4) == 2.0
    # Beyond the rates that were tried, a rising loss goes on rising, and none falls.
    assert between(tried, -9) == 1.0
    assert between({-8: 1.0, -6: 4.0}, -5) == pytest.approx(8.0)
