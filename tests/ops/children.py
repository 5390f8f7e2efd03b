"""Processes that a test starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import meeting

ROOT = Path(__file__).parents[2]


def child_environment() -> dict[str, str]:
    """The environment of a process that imports the library, uses one core and talks only to this machine."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def python(*words: str | Path, **variables: str) -> str:
    """What a new Python interpreter prints, given these arguments. It must end without an error."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**child_environment(), **variables},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def in_processes(folder: Path, task: str, *words: str, count: int = 2) -> None:
    """Run a task, such as `train_task.race`, in `count` processes and in a new folder. See `meeting`."""
    folder.mkdir()
    python(meeting.__file__, str(count), folder, task, *words)
