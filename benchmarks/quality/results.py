"""The results of all trainings so far: a file with a line of JSON for each, appended as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SEARCHED = 0
"""The step of a method that finds its rate itself: one times that rate."""


@dataclass(frozen=True, order=True)
class Run:
    """What is trained. Two runs that are equal give the same figures."""

    task: str
    recipe: str
    """`task.digest` of the task."""
    length: str
    method: str
    size: float
    """How much the adapter may hold: its parameters are about those of a LoRA of this rank."""
    step: int
    """The learning rate, in quarters of a decade: 10 ** (step / 4). Of a method that finds it, SEARCHED."""
    seed: int

    @property
    def lr(self) -> float:
        return 10 ** (self.step / 4)


@dataclass(frozen=True)
class Result:
    run: Run
    numbers: int
    """How many numbers the file of the adapter holds."""
    tune: float
    test: float
    curve: list[tuple[int, float]]
    step_seconds: float
    start_seconds: float
    """CPU time of making the adapter: the probe, where there is one."""
    commit: str
    machine: str = ""
    """The processor, as it calls itself."""


class Results:
    """A file of results; a line that a killed run left unfinished is dropped."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._found: dict[Run, Result] = {}
        for line in whole_lines(file):
            result = _read(json.loads(line))
            self._found[result.run] = result

    def __iter__(self) -> Iterator[Result]:
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)

    def get(self, run: Run) -> Result | None:
        return self._found.get(run)

    def add(self, result: Result) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._found[result.run] = result


def whole_lines(file: Path) -> list[str]:
    """The lines of a file, none where there is none. One that a killed run left unfinished is cut off it."""
    if not file.exists():
        return []
    whole, newline, rest = file.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        file.write_text(whole + newline, encoding="utf-8")
    return whole.splitlines()


def _read(line: dict[str, Any]) -> Result:
    curve = [(step, loss) for step, loss in line.pop("curve")]
    return Result(Run(**line.pop("run")), curve=curve, **line)
