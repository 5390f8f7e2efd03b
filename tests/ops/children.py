"""Processes that a test starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import meeting

ROOT = Path(__file__).parents[2]


def child_environment() -> dict[str, str]:
    """The variables of a process that imports the library, on one core, and talks to this machine alone."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def in_processes(folder: Path, task: str, *words: str, count: int = 2) -> None:
    """Run a task, such as `train_task.race`, in some processes and in a new folder, see `meeting`."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, meeting.__file__, str(count), str(folder), task, *words],
        cwd=ROOT,
        env=child_environment(),
        stderr=subprocess.PIPE,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
