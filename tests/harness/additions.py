"""The changes on the page `docs/adding.md`, applied to a copy of the repository and tested there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    *("__init__.py", "pyproject.toml", "lycoris_ops", "lycoris_nodes", "locales", "workflows"),
    *("tests", "tools"),
)


def additions() -> list[str]:
    """The diffs of the page, in its order."""
    text = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    return re.findall(r"^```diff\n(.*?)^```", text, re.M | re.S)


def added(folder: Path) -> Path:
    """A copy of the repository with all changes of the page.

    Raises CalledProcessError where one cannot be applied.
    """
    home = folder / "added"
    home.mkdir()
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, home / name, **({"symlinks": True} if source.is_dir() else {}))
    (home / ".cache").symlink_to(ROOT / ".cache")
    for text in additions():
        subprocess.run(["git", "apply", "-"], cwd=home, input=text, text=True, check=True)
    return home


def outcome(home: Path, *arguments: str) -> str:
    """What pytest says in the copy. Raises AssertionError where a test fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    # The host's folder would be that of this process, which goes on with its own.
    kept["PYTEST_XDIST_WORKER"] = "added"
    ran = subprocess.run(command, cwd=home, env=kept, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise AssertionError(ran.stdout[-4000:])
    return ran.stdout
