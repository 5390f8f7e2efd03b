"""Tries whether the tests notice small faults in the files that a change touches.

    python -m tools.mutants [--since COMMIT] [--count N] [--seed N] [--workers N] [--seconds N] [FILE ...]

Each fault is one operator of cosmic-ray at one place, drawn at random. It is made in a copy of the last
commit. The test files that name what the mutated file defines are run until a test fails. Test files that
fail or take too long without the fault are left out, and a mutant may stay untested for it. A mutant that
passes all tests has lived: it is shown as a difference, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from queue import SimpleQueue

from cosmic_ray import plugins
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]
COPIES = ROOT / ".cache" / "mutants"
PACKAGES = ("lycoris_ops", "lycoris_nodes")
TESTS = 6
"""How many test files are run against a mutant at most."""
COMMON = 12
"""A name that more test files have says nothing about which of them test it."""
SPARE = 60
"""A mutant counts as noticed where its tests take over twice their time and this many seconds more."""
LEFT_OUT = re.compile(r"core/(Variable|RemoveDecorator|ExceptionReplacer)")
"""Operators whose mutants mostly fail on import, where any test notices them."""


@dataclass(frozen=True)
class Mutant:
    file: str
    operator: str
    source: str
    code: str

    def __str__(self) -> str:
        lines = difflib.unified_diff(
            self.source.splitlines(), self.code.splitlines(), self.file, self.operator, n=1, lineterm=""
        )
        return "\n".join(lines)


def changed(since: str) -> list[str]:
    """The Python files of the pack that differ from a commit."""
    command = ["git", "diff", "--name-only", "--diff-filter=d", since, "--", *PACKAGES]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    return [file for file in found if file.endswith(".py")]


def drawn(files: list[str], count: int, seed: int) -> Iterator[Mutant]:
    """Mutants without those whose code does not run, such as annotations, and without repeats."""
    chance = random.Random(seed)
    operators = [name for name in sorted(plugins.operator_names()) if not LEFT_OUT.match(name)]
    families: dict[str, list[str]] = {}
    for name in operators:
        families.setdefault(name.partition("_")[0], []).append(name)
    sources = {file: (ROOT / file).read_text(encoding="utf-8") for file in files}
    weights = [len(source) for source in sources.values()]
    seen: set[tuple[str, str]] = set()
    for _ in range(200 * count):
        file = chance.choices(list(sources), weights)[0]
        operator = chance.choice(families[chance.choice(list(families))])
        places = list(mutated(sources[file], operator))
        if places and (made := chance.choice(places)) and (file, made) not in seen:
            seen.add((file, made))
            yield Mutant(file, operator, sources[file], made)
        if len(seen) == count:
            return


def mutated(source: str, operator: str) -> Iterator[str]:
    """A source as an operator changes it, once for each of its places outside of annotations."""
    known = unread(source)
    for occurrence in range(10_000):
        made = mutate_code(source, plugins.get_operator(operator)(), occurrence)
        if made is None:
            return
        at = next((n for n, pair in enumerate(zip(source, made, strict=False)) if pair[0] != pair[1]), 0)
        if not any(start <= at < stop for start, stop in known):
            yield made


def unread(source: str) -> list[tuple[int, int]]:
    """The places of annotations and of type aliases' unions in a source."""
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    nodes: list[ast.AST | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.arg, ast.AnnAssign)):
            nodes.append(node.annotation)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes.append(node.returns)
    return [
        (lines[node.lineno - 1] + node.col_offset, lines[node.end_lineno - 1] + node.end_col_offset)
        for node in nodes
        if isinstance(node, ast.expr) and node.end_lineno and node.end_col_offset
    ]


@cache
def texts() -> dict[str, str]:
    """The texts of the test files, except those that need a browser."""
    files = [file for file in sorted(ROOT.glob("tests/*/test_*.py")) if file.parent.name != "browser"]
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


@cache
def sources() -> dict[str, str]:
    """The sources of the pack."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


@cache
def spread() -> Counter[str]:
    """In how many test files each word is."""
    return Counter(word for text in texts().values() for word in set(re.findall(r"\w+", text)))


def nearest(file: str) -> list[str]:
    """The test files that name a file or what it defines, or else what the files that use it define.

    A name counts for more where fewer test files have it, and for nothing where many have it.
    """
    seen: set[str] = set()
    wave = {file}
    while wave:
        names = {name for file in wave for name in defined(file) if spread()[name] <= COMMON}
        scores = {
            test: sum(1 / spread()[name] for name in names.intersection(re.findall(r"\w+", text)))
            for test, text in texts().items()
        }
        if ordered := sorted((test for test in scores if scores[test]), key=lambda test: -scores[test]):
            return ordered[:TESTS]
        seen |= wave
        wave = set[str]().union(*map(users, wave)) - seen
    return []


def defined(file: str) -> set[str]:
    """The name of a file, the names that it defines, and the ids of its nodes."""
    source = sources()[file]
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)} | {Path(file).stem}
    return {name for name in names if not name.startswith("_")} | set(re.findall(r'node_id="(\w+)"', source))


def users(file: str) -> set[str]:
    """The files that import a file, or else its neighbours: a package may find its files by itself."""
    path = Path(file)
    stem = path.parent.name if path.stem == "__init__" else path.stem
    imports = re.compile(rf"^ *(from [\w.]*\b{stem} import|(from [\w.]+ )?import .*\b{stem}\b)", re.MULTILINE)
    found = {other for other, source in sources().items() if other != file and imports.search(source)}
    return found or {other for other in sources() if Path(other).parent == path.parent}


@dataclass
class Trial:
    """Runs tests on mutants in copies of the last commit."""

    seconds: float
    """How long the tests of a mutant take at most without it."""
    times: dict[str, float | None] = field(default_factory=dict)
    """How long each test file takes without a mutant; None where it fails."""

    def lives(self, mutant: Mutant, copy: Path) -> bool | None:
        """Whether the nearest tests pass with a mutant in a copy of the pack; None where none can be run."""
        tests, total = [], 0.0
        for test in nearest(mutant.file):
            if test not in self.times:
                begun = time.monotonic()
                passed = self.passed([test], copy, self.seconds)
                self.times[test] = time.monotonic() - begun if passed else None
            taken = self.times[test]
            if taken is not None and total + taken <= self.seconds:
                tests.append(test)
                total += taken
        if not tests:
            return None
        place = copy / mutant.file
        place.write_text(mutant.code, encoding="utf-8")
        try:
            return self.passed(tests, copy, 2 * total + SPARE)
        finally:
            place.write_text(mutant.source, encoding="utf-8")

    def passed(self, tests: list[str], copy: Path, most: float) -> bool:
        """Whether tests pass within so many seconds."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        try:
            found = subprocess.run(
                command, cwd=copy, env=environment, capture_output=True, timeout=most, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return found.returncode == 0


def copied(name: str) -> Path:
    """A copy of the last commit."""
    place = COPIES / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(place)], input=archive, check=True)
    return place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", help="the files to mutate; by default those that changed")
    parser.add_argument("--since", default="HEAD~1", help="the commit that changes are counted from")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=200, help="how long the tests of a mutant may take")
    options = parser.parse_args()
    files = options.files or changed(options.since)
    if not files:
        print("no file of the pack has changed")
        return 0
    trial = Trial(options.seconds)
    copies: SimpleQueue[Path] = SimpleQueue()
    for worker in range(options.workers):
        copies.put(copied(f"copy{worker}"))

    def tried(mutant: Mutant) -> tuple[Mutant, bool | None]:
        copy = copies.get()
        try:
            return mutant, trial.lives(mutant, copy)
        finally:
            copies.put(copy)

    verdicts: list[str] = []
    with ThreadPoolExecutor(options.workers) as pool:
        for mutant, lived in pool.map(tried, drawn(files, options.count, options.seed)):
            verdicts.append("untested" if lived is None else "LIVES" if lived else "noticed")
            print(f"{len(verdicts)}: {mutant.file} {mutant.operator}: {verdicts[-1]}", flush=True)
            if lived:
                print(mutant, flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in Counter(verdicts).items()))
    return int("LIVES" in verdicts)


if __name__ == "__main__":
    sys.exit(main())
