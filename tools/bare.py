"""Run the library's tests that need no other package than torch, numpy, safetensors and pytest.

    python -m tools.bare [arguments of pytest ...]

Runs all such files of `tests/ops`, or those that are named. The running Python needs only these packages. If
`lycoris_ops` does not lie beside the tests, the installed one is tested.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
BARE = ("torch", "numpy", "safetensors", "pytest")
REPOSITORY = ("test_rooms.py", "test_serving.py", "test_pages.py", "test_docs_code.py")
"""Tests of the library that look at the repository."""


def unsuited(folder: Path) -> Iterator[str]:
    """The test files that need another package, or the repository."""
    files = {file.stem: file for file in folder.glob("*.py")}
    files |= {f"tests.harness.{file.stem}": file for file in (TESTS / "harness").glob("*.py")}
    needed = {name: modules(file) for name, file in files.items()}
    known = {*sys.stdlib_module_names, *BARE, *files, "lycoris_ops", "tests.harness"}

    def needs(name: str, seen: frozenset[str] = frozenset()) -> set[str]:
        inner = needed[name] & files.keys() - seen - {name}
        return (needed[name] - known).union(*(needs(one, seen | {name}) for one in inner))

    for name in sorted(files):
        if name.startswith("test_") and (f"{name}.py" in REPOSITORY or needs(name)):
            yield f"{name}.py"


def modules(file: Path) -> set[str]:
    """What a file imports anywhere: packages, and modules of the harness."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom):
            start = "tests.harness." if node.level else ""
            found.add(f"{start}{node.module or ''}")
            if node.module == "tests.harness":
                found |= {f"tests.harness.{name.name}" for name in node.names}
    return {name if name.startswith("tests.harness") else name.partition(".")[0] for name in found}


if __name__ == "__main__":
    left = [f"--ignore=tests/ops/{name}" for name in unsuited(TESTS / "ops")]
    print(f"{len(left)} files of tests need other packages or the repository and are left out", flush=True)
    given = sys.argv[1:]
    named = [] if any(one.startswith("tests/ops") for one in given) else ["tests/ops"]
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", "-q", *named, *left, *given], cwd=TESTS.parent))
