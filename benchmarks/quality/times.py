"""The time of each method's step and set-up, as multiples of a LoRA's step that is trained in turn with it.

`python -m benchmarks.quality.times` measures what `times.jsonl` beside this file lacks, for all tasks and
methods or some of them; delete the file to measure anew. Seconds measured hours apart, or on other machines,
are harder to compare.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .method import Method, Setting
from .methods.ours import lora
from .results import SEARCHED, whole_lines
from .run import METHODS, TASKS, commit, pairs, processor
from .task import Task, digest
from .training import Adapted, stepped

TIMES = Path(__file__).parent / "times.jsonl"
REFERENCE = 4
"""The rank of the uniform LoRA."""
STEPS = 24
"""How many steps are timed. Methods that act between steps are timed over a whole training."""
LOW = 1e-3
"""The rate of the reference. That of a method may be a multiple of one that it finds itself."""
FIRST = 2
"""How many warm-up steps come first, untimed."""


@dataclass(frozen=True)
class Time:
    """The times of a method at a size, as multiples of a reference step. CPU time of all threads."""

    task: str
    recipe: str
    """`task.digest` of the task."""
    method: str
    size: float
    step: float
    start: float
    """The time to make the adapter, including the probe of methods that have one."""
    reference_seconds: float
    commit: str
    machine: str
    length: str = "short"
    """The length of the training that was begun. Only a search takes longer before a long one."""


Times = dict[tuple[str, str, float, str], Time]
"""By recipe, method, size and length."""


def read(file: Path = TIMES) -> Times:
    found = (Time(**json.loads(line)) for line in whole_lines(file))
    return {(one.recipe, one.method, one.size, one.length): one for one in found}


def measure(task: Task, method: Method, size: float, length: str, commit: str = "") -> Time:
    """Train a method and the reference in turn, for the steps that are timed."""
    steps = task.steps[length]
    few = min(steps, STEPS + FIRST)
    module, reference = task.base(), (lora(Setting(task, task.base(), REFERENCE, 0, steps)), LOW)
    (before,) = seconds_in_turn(task, (reference,), steps, few)
    began = time.process_time()
    adapted = method.adapt(Setting(task, module, size, 0, steps))
    start = time.process_time() - began
    timed = steps if adapted.acts_between_steps else few
    own, other = seconds_in_turn(task, ((adapted, 10 ** (method.start / 4)), reference), steps, timed)
    return Time(
        task=task.name,
        recipe=digest(task),
        method=method.name,
        size=size,
        step=own / other,
        start=2 * start / (before + other),
        reference_seconds=other,
        commit=commit,
        machine=processor(),
        length=length,
    )


def seconds_in_turn(
    task: Task, trained: Sequence[tuple[Adapted, float]], length: int, steps: int
) -> tuple[float, ...]:
    """The mean seconds per step of each, at its rate, in the first `steps` of trainings of `length` steps."""
    running = [stepped(task, adapted, lr=lr, seed=0, steps=length) for adapted, lr in trained]
    # Shorter if a loss is not finite: that training ends.
    rounds = list(itertools.islice(zip(*running, strict=False), steps))[FIRST:]
    return tuple(statistics.fmean(step.seconds for step in own) for own in zip(*rounds, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=[task.name for task in TASKS], metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=[method.name for method in METHODS], metavar="NAME")
    options = parser.parse_args()
    tasks = [task for task in TASKS if not options.tasks or task.name in options.tasks]
    methods = [method for method in METHODS if not options.methods or method.name in options.methods]
    known, code = read(), commit()
    for method, task in pairs(tasks, methods):
        sizes = [(size, "short") for size in dict.fromkeys((*method.sizes, *method.long))]
        if method.start == SEARCHED:
            sizes += [(size, "long") for size in method.long]
        for size, length in sizes:
            if (digest(task), method.name, size, length) in known:
                continue
            found = measure(task, method, size, length, code)
            with TIMES.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(found)) + "\n")
            print(
                f"{task.name:12} {method.name:24} {size:5g} {length:5}  a step {found.step:.2f}, the start "
                f"{found.start:.1f}, of {1e3 * found.reference_seconds:.0f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
