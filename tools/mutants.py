"""Tries whether the tests notice small faults in the files that a change touches.

    python -m tools.mutants [--since COMMIT] [--count N] [--seed N] [FILE ...]

Each fault is one operator of cosmic-ray at one place, drawn at random. It is made in a copy of the last
commit, and the tests that name what the file defines are run until one fails. A mutant that all of them pass
has lived: it is shown as a difference, and the exit status is 1.
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from cosmic_ray import plugins
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]
COPIES = ROOT / ".cache" / "mutants"
WORKERS = 2
TESTS = 6
"""How many test files are run against a mutant: those that name most of what its file defines."""
SECONDS = 400
"""A mutant on which the tests take longer, such as an endless loop, counts as noticed."""
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
    command = ["git", "diff", "--name-only", "--diff-filter=d", since, "--", "lycoris_ops", "lycoris_nodes"]
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


def nearest(file: str) -> list[str]:
    """The test files that name most of what a file defines, those that import it first."""
    module = Path(file).with_suffix("")
    source = (ROOT / file).read_text(encoding="utf-8")
    names = {
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    }
    # A node is named by its id.
    names |= set(re.findall(r'node_id="(\w+)"', source))
    scores: dict[str, int] = {}
    for test in sorted(ROOT.glob("tests/*/test_*.py")):
        if test.parent.name == "browser":
            continue
        text = test.read_text(encoding="utf-8")
        words = set(re.findall(r"\w+", text))
        score = len(names & words) + 20 * (".".join(module.parts) in text) + 10 * (module.name in test.name)
        scores[str(test.relative_to(ROOT))] = score
    ordered = sorted(scores, key=lambda name: -scores[name])
    return [name for name in ordered[:TESTS] if scores[name]]


def lives(mutant: Mutant, copy: Path) -> bool:
    """Whether the nearest tests pass with a mutant in a copy of the pack."""
    place = copy / mutant.file
    place.write_text(mutant.code, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *nearest(mutant.file)]
    try:
        found = subprocess.run(
            command,
            cwd=copy,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    finally:
        place.write_text(mutant.source, encoding="utf-8")
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
    options = parser.parse_args()
    files = options.files or changed(options.since)
    if not files:
        print("no file of the pack has changed")
        return 0
    copies: SimpleQueue[Path] = SimpleQueue()
    for worker in range(WORKERS):
        copies.put(copied(f"copy{worker}"))

    def tried(mutant: Mutant) -> tuple[Mutant, bool]:
        copy = copies.get()
        try:
            return mutant, lives(mutant, copy)
        finally:
            copies.put(copy)

    alive = total = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        for mutant, lived in pool.map(tried, drawn(files, options.count, options.seed)):
            total += 1
            alive += lived
            print(f"{total}: {mutant.file} {mutant.operator}: {'LIVES' if lived else 'noticed'}", flush=True)
            if lived:
                print(mutant, flush=True)
    print(f"{alive} of {total} mutants live")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
