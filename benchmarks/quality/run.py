"""The measured comparison of adapters on trained models, `make bench-quality`.

`python -m benchmarks.quality.run` trains what is not trained yet and appends each result to `results.jsonl`
beside this file: a run that ended for any reason is gone on with, and so is what others measured. Its options
take some of the stages, tasks and methods, or stop it after some minutes. From the file, `python -m
benchmarks.quality.summary` writes tables and plots.

Each method, at each size, has its own learning rate, found on the split "tune" with seed 0. Figures are of
the split "test" at that rate, for three seeds. The stages go through all methods one after the other, so that
what there is at any time can be compared:

- coarse: short trainings, rates half a decade apart, one seed;
- seeds: the two other seeds;
- fine: rates a quarter of a decade apart, and the seeds at the new best;
- long: long trainings, rates half a decade apart from the short trainings' best, and the seeds;
- finer, where it is asked for: the long trainings at rates a quarter of a decade apart, and the seeds at the
  new best.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from .method import Method, Setting
from .methods import in_peft, ours, planned, searched, whole
from .results import SEARCHED, Result, Results, Run
from .search import best
from .task import Task, digest
from .tasks.characters import Characters
from .tasks.digits import Digits
from .tasks.flow import Flow
from .tasks.pictures import Pictures
from .tasks.series import Series
from .tasks.source_code import SourceCode
from .tasks.table import Table
from .tasks.text_lines import TextLines
from .training import train

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results.jsonl"
"""All trainings so far. They take hours, and are kept with the code that made them."""
TASKS: tuple[Task, ...] = (
    Characters(),
    Series(),
    Digits(),
    Flow(),
    Table(),
    TextLines(),
    SourceCode(),
    Pictures(),
)
"""Those on which nothing is tuned come first."""
METHODS: tuple[Method, ...] = (
    *ours.METHODS,
    *planned.METHODS,
    *searched.METHODS,
    *whole.METHODS,
    *in_peft.METHODS,
)
SEEDS = (0, 1, 2)
COARSE, FINE = 2, 1
STAGES: dict[str, tuple[tuple[str, int], ...]] = {
    "coarse": (("short", COARSE),),
    "seeds": (("short", COARSE),),
    "fine": (("short", COARSE), ("short", FINE)),
    "long": (("short", COARSE), ("long", COARSE)),
    "finer": (("short", COARSE), ("long", COARSE), ("long", FINE)),
}
"""For each stage the length and the width of the searches for a rate, each from where the last one ended."""


class OutOfTimeError(Exception):
    """The minutes that a run was given are over."""


class Bench:
    """Trains what is asked for, unless the results have it."""

    def __init__(self, results: Results, until: float = float("inf"), commit: str = "") -> None:
        self.results = results
        self.until = until
        self.commit = commit

    def result(self, task: Task, method: Method, length: str, size: float, step: int, seed: int) -> Result:
        run = Run(task.name, digest(task), length, method.name, size, step, seed)
        found = self.results.get(run)
        if found is None:
            if time.monotonic() > self.until:
                raise OutOfTimeError
            found = self._train(task, method, run)
            self.results.add(found)
            print(
                f"{task.name:12} {length:5} {method.name:24} {size:5g} lr {run.lr:.1e} seed {seed} "
                f"{found.numbers:8} numbers  tune {found.tune:.4f} test {found.test:.4f}  "
                f"{1e3 * found.step_seconds:.0f} ms a step",
                flush=True,
            )
        return found

    def rate(self, task: Task, method: Method, length: str, size: float, start: int, width: int) -> int:
        """The best learning rate, as `search.best` counts it."""
        if method.start == SEARCHED:
            return start
        return best(lambda step: self.result(task, method, length, size, step, SEEDS[0]).tune, start, width)

    def _train(self, task: Task, method: Method, run: Run) -> Result:
        steps = task.steps[run.length]
        module = task.base()
        began = time.process_time()
        adapted = method.adapt(Setting(task, module, run.size, run.seed, steps))
        started = time.process_time() - began
        outcome = train(task, adapted, lr=run.lr, seed=run.seed, steps=steps)
        return Result(
            run=run,
            numbers=adapted.numbers(),
            tune=outcome.tune,
            test=outcome.curve[-1][1],
            curve=outcome.curve,
            step_seconds=outcome.step_seconds,
            start_seconds=started,
            commit=self.commit,
            machine=processor(),
        )


def processor() -> str:
    """What the processor calls itself."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """The commit that is checked out. Ends the program where code differs from it."""

    def told(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout

    changed = told("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    if changed:
        sys.exit(f"Commit these first, since a result names the commit that gave it:\n{changed}")
    return told("describe", "--always").strip()


def near(rates: dict[float, int], size: float, default: int) -> int:
    """The rate that was found for the nearest size."""
    return rates[min(rates, key=lambda other: (abs(other - size), other))] if rates else default


def stage(bench: Bench, name: str, tasks: Sequence[Task], methods: Sequence[Method]) -> None:
    """Do a stage, see this module's text. What earlier stages found is looked up, or trained first."""
    for method, task in pairs(tasks, methods):
        last, _ = STAGES[name][-1]
        known: dict[tuple[str, int], dict[float, int]] = {search: {} for search in STAGES[name]}
        for size in method.long if last == "long" else method.sizes:
            step = method.start
            for (length, width), rates in known.items():
                step = rates[size] = bench.rate(task, method, length, size, near(rates, size, step), width)
            if name != "coarse":
                for seed in SEEDS:
                    bench.result(task, method, last, size, step, seed)


def pairs(tasks: Sequence[Task], methods: Sequence[Method]) -> Iterator[tuple[Method, Task]]:
    for method in methods:
        for task in tasks:
            if method.runs_on(task):
                yield method, task


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many minutes")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES)[:-1])
    names = [task.name for task in TASKS]
    parser.add_argument(
        "--tasks", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    names = list(dict.fromkeys(method.name for method in METHODS))
    parser.add_argument(
        "--methods", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    options = parser.parse_args()
    tasks = [task for task in TASKS if task.name in options.tasks]
    methods = [method for method in METHODS if method.name in options.methods]
    results = Results(RESULTS)
    bench = Bench(results, time.monotonic() + 60 * options.minutes, commit())
    print(f"{len(results)} results in {results.file}; {torch.get_num_threads()} threads", flush=True)
    try:
        for name in options.stages:
            stage(bench, name, tasks, methods)
    except OutOfTimeError:
        print(f"stopped after {options.minutes:g} minutes; the same command goes on", file=sys.stderr)


if __name__ == "__main__":
    main()
