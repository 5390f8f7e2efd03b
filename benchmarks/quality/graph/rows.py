"""The results of all trainings in the graph so far: a file with a line of JSON for each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from ..results import whole_lines
from .shapes import Shapes

RESULTS = Path(__file__).parent / "results.jsonl"
SHAPES = Shapes()
RECIPE = sha256(repr(SHAPES).encode()).hexdigest()[:10]
STEPS, SEARCHED_AT, SEEDS = (60, 120, 240), 120, (0, 1, 2)
"""The lengths of trainings, the one after which rates are compared, and the seeds. Only the first seed has
the other lengths."""


@dataclass(frozen=True)
class Key:
    """What is trained."""

    recipe: str
    way: str
    size: int
    step: int | None
    """The rate, in quarters of a decade; None where the node finds it."""
    steps: int
    seed: int


@dataclass(frozen=True)
class Row:
    key: Key
    numbers: int
    """How many numbers the file holds."""
    before: float
    """The loss on "test" without an adapter."""
    tune: float
    test: float
    as_theirs: float
    """The loss on "test" that ComfyUI's trainer minimises."""
    seconds: float
    told: str
    """What was searched, in words."""
    machine: str


def read(file: Path = RESULTS) -> dict[Key, Row]:
    rows = [json.loads(line) for line in whole_lines(file)]
    return {row.key: row for row in (Row(Key(**line.pop("key")), **line) for line in rows)}


def add(row: Row, file: Path = RESULTS) -> None:
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(row)) + "\n")
