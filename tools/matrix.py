"""The published library and pack on the versions that are promised, one cell after the other.

    python3 -m tools.matrix [--list] [--again] [CELL ...]

A cell of the library runs its tests from the wheel, on a Python and a torch. A cell of the pack runs a choice
of tests from the unpacked archive, on a ComfyUI, or in the browser on one of its front ends. The
outcome of a cell is kept in `.cache/matrix`, and written to docs/compatibility.md as soon as the cell has
ended. A cell that has passed is not run again until its sources change, unless `--again` is given. `--list`
prints the cells for a forge.

Needs Python 3.11 or newer, and the Python of each cell by its name, such as `python3.10`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

from tests.harness.environment import ROOT, numbers, pins

from .made import DIST, EXTRAS, LIBRARY_HOME, PACK, TOOLS

HOME = ROOT / ".cache" / "matrix"
RESULTS, JUNIT = HOME / "results.json", HOME / "junit.xml"
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->\n"
TESTED = (
    *("lycoris_ops", "lycoris_nodes", "locales", "workflows", "tests", "tools", "packaging"),
    *("__init__.py", "pyproject.toml"),
)
"""What a result depends on."""
PASSED, FAILED, UNTRIED = "passed", "failed", "not tried here"
NEWEST = "newest"
LIBRARY = (
    *(("3.10", "2.4"), ("3.10", NEWEST), ("3.11", "2.7"), ("3.12", "2.4"), ("3.12", "2.7")),
    *(("3.13", "2.7"), ("3.13", NEWEST)),
)
"""Python and torch: the oldest and the newest that go together, and what lies between."""
LIBRARY_TESTS = ("contract", "patch", "bypass", "gradients", "files", "resolve", "save", "train_loop", "cli")
"""Files that go through every kind of adapter, reading, matching, applying, training, writing and verbs."""
HOST_TESTS = ("test_promises", "test_nodes", "test_rows", "test_kinds", "test_export", "test_routes")
"""Files that go through every node, the rows, every kind of adapter, merged files and the routes."""
BROWSER_TESTS = (
    "test_every_template.py",
    "test_pack.py::test_the_page_loads_without_an_error",
    "test_pack.py::test_a_node_is_found_by_name_and_by_alias",
)
"""Every template opened and run in both renderers, and every node found."""


@dataclass(frozen=True)
class Result:
    """The outcome of a cell in words, the versions that it ran with, the day, and a hash of the sources."""

    state: str
    told: str
    ran: str
    day: str
    sources: str


@dataclass(frozen=True)
class Library:
    """The wheel on a Python and a torch."""

    python: str
    torch: str

    @property
    def name(self) -> str:
        return f"library-{self.python}-{self.torch}"

    def __str__(self) -> str:
        return f"library, Python {self.python}, {self.torch} torch"

    def run(self) -> str:
        """Run its tests; returns the versions that they ran with."""
        home = HOME / self.name
        python = home / "bin" / "python"
        torch = "torch" if self.torch == NEWEST else f"torch=={self.torch}.*"
        (wheel,) = DIST.glob("*.whl")
        try:
            run(TOOLS / "uv", "venv", "-q", "--clear", "--python", self.python, home)
            install = (TOOLS / "uv", "pip", "install", "-q", "--no-cache", "--python", python)
            run(*install, torch, f"{wheel}[{EXTRAS}]", "pytest", "pytest-xdist")
            names = [f"tests/ops/test_{name}.py" for name in LIBRARY_TESTS]
            tests = (python, "-m", "tools.bare", "-n", "2", f"--junitxml={JUNIT}", *names)
            run(*tests, cwd=LIBRARY_HOME, may_fail=True)
            ask = "import platform, torch; print(platform.python_version(), 'torch', torch.__version__)"
            told = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout
            return f"Python {told.strip()}"
        finally:
            # torch from the package index takes gigabytes.
            shutil.rmtree(home, ignore_errors=True)


@dataclass(frozen=True)
class Pack:
    """The archive on a host; in the browser where a front end is given, the host's own or the newest."""

    host: str
    front_end: str = ""
    python: str = "3.11"

    @property
    def name(self) -> str:
        return "-".join(("host", self.host, *filter(None, [self.front_end])))

    def __str__(self) -> str:
        return f"ComfyUI {self.host}" + (f", {self.front_end} front end" if self.front_end else "")

    def run(self) -> str:
        """Run its tests; returns the versions that they ran with."""
        newest = max(pins()["front_ends"], key=numbers)
        names = [f"tests/browser/{name}" for name in BROWSER_TESTS]
        if not self.front_end:
            names = [f"tests/host/{name}.py" for name in HOST_TESTS]
        tests = ["python", "-m", "pytest", "-q", f"--junitxml={JUNIT}", *names]
        if self.front_end:
            tests += ["-k", newest, "-m", "not soak"] if self.front_end == NEWEST else ["-k", f"not {newest}"]
        options = ["--host", self.host, *(["--browser"] if self.front_end else [])]
        environment = (f"python{self.python}", "tests/harness/environment.py", *options, "--")
        run(*environment, *tests, cwd=PACK, may_fail=True)
        required = (ROOT / ".cache" / self.host / "ComfyUI" / "requirements.txt").read_text(encoding="utf-8")
        (own,) = re.findall(r"^comfyui-frontend-package==(\S+)", required, re.M)
        if not self.front_end:
            return f"Python {self.python}"
        return f"front end {newest if self.front_end == NEWEST else own}"


CELLS = {
    cell.name: cell
    for cell in (
        *(Library(python, torch) for python, torch in LIBRARY),
        *(Pack(host, front_end) for host in pins()["hosts"] for front_end in ("", "own", NEWEST)),
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Try what is published on the versions that are promised.")
    parser.add_argument("--list", action="store_true", help="print the cells and their Pythons as JSON")
    parser.add_argument("--again", action="store_true", help="also run cells that have passed")
    parser.add_argument("cell", nargs="*", help=f"these alone, of {', '.join(CELLS)}")
    options = parser.parse_args()
    if unknown := set(options.cell) - CELLS.keys():
        parser.error(f"no cell {', '.join(sorted(unknown))}; there are {', '.join(CELLS)}")
    if options.list:
        print(json.dumps([{"cell": name, "python": cell.python} for name, cell in CELLS.items()]))
        return 0
    HOME.mkdir(parents=True, exist_ok=True)
    of, results = sources(), read_results()
    cells = [CELLS[name] for name in options.cell or CELLS]
    done = [name for name, one in results.items() if (one.state, one.sources) == (PASSED, of)]
    wanted = [cell for cell in cells if options.again or cell.name not in done]
    if wanted:
        run(sys.executable, "tests/harness/environment.py", "--", "python", "-m", "tools.made")
    for cell in wanted:
        print(f"\n{cell}", flush=True)
        results[cell.name] = tried(cell, of)
        RESULTS.write_text(json.dumps({name: asdict(one) for name, one in results.items()}, indent=1))
        PAGE.write_text(with_results(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    print()
    for cell in cells:
        print(f"{cell}: {results[cell.name].state}, {results[cell.name].told}")
    # A cell that was asked for by its name has to be tried.
    good = (PASSED,) if options.cell else (PASSED, UNTRIED)
    return 0 if all(results[cell.name].state in good for cell in cells) else 1


def tried(cell: Library | Pack, of: str) -> Result:
    day = date.today().isoformat()
    if not has_python(cell.python):
        return Result(UNTRIED, f"no Python {cell.python} was at hand", "", day, of)
    JUNIT.unlink(missing_ok=True)
    try:
        ran = cell.run()
    except subprocess.CalledProcessError as error:
        return Result(FAILED, f"`{' '.join(error.cmd)}` ended with {error.returncode}", "", day, of)
    state, told = outcome()
    return Result(state, told, ran, day, of)


def outcome() -> tuple[str, str]:
    """Whether the tests of the last cell passed, and their counts in words."""
    if not JUNIT.exists():
        return FAILED, "the tests did not end"
    (suite,) = ElementTree.parse(JUNIT).getroot().iter("testsuite")
    count, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    bad = [
        f"`{case.attrib['name']}`"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    passed = count - skipped - len(bad)
    words = [f"{passed} passed", *([f"{skipped} skipped"] if skipped else [])]
    if bad or not passed:
        return FAILED, f"{', '.join(words)}, {len(bad)} failed: {', '.join(bad)}"
    return PASSED, ", ".join(words)


def has_python(version: str) -> bool:
    """Whether there is a Python of this version by its name."""
    ask = [f"python{version}", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() == version
    except FileNotFoundError:
        return False


def sources() -> str:
    """A short hash of everything in the last commit that a result depends on."""
    names = [f"HEAD:{name}" for name in TESTED]
    told = subprocess.run(["git", "rev-parse", *names], cwd=ROOT, check=True, capture_output=True).stdout
    return hashlib.sha256(told).hexdigest()[:7]


def read_results() -> dict[str, Result]:
    if not RESULTS.exists():
        return {}
    return {name: Result(**one) for name, one in json.loads(RESULTS.read_text(encoding="utf-8")).items()}


def with_results(page: str, results: Mapping[str, Result]) -> str:
    """The page with a row for each cell: from these results, or else the row that the page has already."""
    before, _, rest = page.partition(BEGIN)
    rows, _, after = rest.partition(END)
    kept = {row.split(" | ")[0].removeprefix("| "): row for row in rows.splitlines()}
    lines = ["| | result | with | on | of |", "|---|---|---|---|---|"]
    for name, cell in CELLS.items():
        if one := results.get(name):
            state = one.told if one.state == PASSED else f"**{one.state}**: {one.told}"
            lines.append(f"| {cell} | {state} | {one.ran} | {one.day} | `{one.sources}` |")
        else:
            lines.append(kept.get(str(cell), f"| {cell} | {UNTRIED} | | | |"))
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n\n{END}{after}"


def run(*command: str | Path, cwd: Path = ROOT, may_fail: bool = False) -> None:
    """Run a command whose output is shown.

    Raises CalledProcessError where it fails and may not.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    kept["OMP_NUM_THREADS"] = "1"
    subprocess.run(list(map(str, command)), cwd=cwd, env=kept, stdin=subprocess.DEVNULL, check=not may_fail)


if __name__ == "__main__":
    sys.exit(main())
