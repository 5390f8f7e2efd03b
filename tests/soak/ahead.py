"""Hosts that start in a third of the time, for campaigns that start them often.

A process imports what hosts import of other packages, and nothing of the host or of the pack. Each host is a
copy of it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.harness.launch import Process, Server, run_main

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "av",
    "aiohttp",
    "sqlalchemy",
    "alembic",
    "scipy",
    "einops",
)


@dataclass(frozen=True)
class Copy:
    """A host that another process has started, and that leaves nothing to wait for."""

    pid: int

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    def terminate(self) -> None:
        self._sent(signal.SIGTERM)

    def kill(self) -> None:
        self._sent(signal.SIGKILL)

    def _sent(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (600 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("the host", timeout or 600)
            time.sleep(0.05)
        return 0


class ServerAhead(Server):
    """A server whose process is such a copy."""

    _source: subprocess.Popen[str] | None = None

    def _started(self) -> Process:
        source = self._source = self._source or subprocess.Popen(
            [sys.executable, "-m", __spec__.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        assert source.stdin is not None and source.stdout is not None
        # The copy may write it only later.
        self.log.touch()
        print(json.dumps([str(self.base), str(self.log), *self.command]), file=source.stdin, flush=True)
        return Copy(int(source.stdout.readline()))

    def end(self) -> None:
        """Stop the host, and end the process that hosts are copies of."""
        self._stop()
        if self._source is not None:
            self._source.communicate()
            self._source = None


def main() -> None:
    for name in PACKAGES:
        importlib.import_module(name)
    # So that nobody has to wait for a copy that was killed.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _become_host(*json.loads(line))
        print(pid)
    # The campaign has ended, in whatever way. No host outlives it.
    os.killpg(0, signal.SIGKILL)


def _become_host(base: str, log: str, comfyui: str, *arguments: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(base)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, opened in enumerate((os.open(os.devnull, os.O_RDONLY), written, written)):
        os.dup2(opened, number)
    run_main(Path(comfyui), arguments)
    sys.exit()


if __name__ == "__main__":
    main()
