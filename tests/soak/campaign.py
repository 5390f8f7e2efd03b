"""The campaign of mutated files: `python -m tests.soak.campaign [--files N] [--seed S] [--workers N]`.

Every file is taken through all that a user can do with it, in a process with limits of CPU time and memory.
It must give a right result or an error of the library's family. Findings are printed in groups of one cause.
Each line has the options that take its first file again, and that file is kept. The exit status is 1 where
there is a finding.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .crafted import CRAFTED
from .source import Source
from .stages import Finding, Outcome

FILES = 20_000
SEED = 20261126
WAIT = 120.0
"""Seconds after which a process that gives no answer is ended: it waits for something, as its CPU time has a
limit of its own."""
Job = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Result(Outcome):
    job: Job


def _lost(job: Job, finding: Finding) -> Result:
    """The result of a file whose process gave none."""
    return Result(name=json.dumps(job), findings=(finding,), job=job)


class Worker:
    """A process that takes files in a child with limits. After a file without an answer it starts anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.traces = folder / "traces.txt"
        self.process: subprocess.Popen[str] | None = None

    def _started(self) -> subprocess.Popen[str]:
        errors, room = self.folder / "errors.txt", self.folder / "room"
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir(parents=True)
        self.traces.write_text("")
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.worker", str(room), str(self.traces)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            process.wait()
            raise RuntimeError(f"a worker does not start: {errors.read_text()}")
        return process

    def take(self, job: Job) -> Result:
        """What became of a file."""
        process = self.process = self.process or self._started()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        timer = threading.Timer(WAIT, lambda: os.killpg(process.pid, signal.SIGKILL))
        timer.start()
        line = process.stdout.readline()
        timer.cancel()
        if not line:
            self.stop()
            return _lost(job, Finding("time", "?", f"no answer in {WAIT:g} s", "", ""))
        answer = json.loads(line)
        if "died" in answer:
            return _lost(job, Finding("died", "?", f"status {answer['died']}", self._place(), ""))
        findings = tuple(Finding(**one) for one in answer.pop("findings"))
        return Result(job=job, findings=findings, **answer)

    def _place(self) -> str:
        """The innermost line of the library in the stack that a dying process wrote."""
        stacks = self.traces.read_text(errors="replace").splitlines()
        self.traces.write_text("")
        for line in stacks:
            if "/lycoris_ops/" in line and "File" in line:
                return line.strip().rpartition("/lycoris_ops/")[2].replace('"', "")
        return ""

    def stop(self) -> None:
        if self.process is not None:
            # This closes its input, at which it ends.
            with contextlib.suppress(BrokenPipeError):
                self.process.communicate()
            self.process = None


def run(jobs: Iterable[Job], folder: Path, *, workers: int = 2, quiet: bool = True) -> list[Result]:
    """Take the files of all jobs, in any order; `folder` is an empty one to work in."""
    waiting = deque(jobs)
    total, started = len(waiting), time.monotonic()
    results: list[Result] = []

    def work(number: int) -> None:
        worker = Worker(folder / f"worker{number}")
        try:
            # Taking from a deque is one step for all threads.
            with contextlib.suppress(IndexError):
                while True:
                    results.append(worker.take(waiting.popleft()))
                    if not quiet and len(results) % 500 == 0:
                        rate = len(results) / (time.monotonic() - started)
                        print(f"{len(results)} of {total} files, {rate:.0f} a second", file=sys.stderr)
        finally:
            worker.stop()

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(min(workers, max(1, total)))))
    return results


def grouped(results: Sequence[Result]) -> list[tuple[int, Finding, Result]]:
    """The findings by their causes, the most frequent first, each with the first file that shows it."""
    count: Counter[tuple[str, str, str]] = Counter()
    first: dict[tuple[str, str, str], tuple[Finding, Result]] = {}
    for result in results:
        for group, finding in {finding.group: finding for finding in result.findings}.items():
            count[group] += 1
            first.setdefault(group, (finding, result))
    return [(times, *first[group]) for group, times in count.most_common()]


def line(times: int, finding: Finding, result: Result) -> str:
    """A group of findings in a line."""
    given = {"number": "only"}
    again = " ".join(f"--{given.get(name, name)} {value}" for name, value in result.job.items())
    return (
        f"{times:5d} {finding.what}: {finding.stage}: {finding.kind} at {finding.where or '-'}: "
        f"{finding.message} [{result.name}; {again}]"
    )


def keep(results: Sequence[Result], folder: Path) -> None:
    """Write the file of each group of findings, with its outcome, to a folder."""
    source = Source()
    for number, (_, finding, result) in enumerate(grouped(results)):
        out = folder / f"{number:03d}"
        for name, blob in source.case(result.job).files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blob)
        (out / "outcome.json").write_text(json.dumps({"job": result.job, **asdict(finding)}, indent=2))


def _jobs(options: argparse.Namespace) -> list[Job]:
    if options.crafted == ["all"]:
        return [{"crafted": name} for name in CRAFTED]
    if options.crafted:
        return [{"crafted": name} for name in options.crafted]
    if options.pristine is not None:
        return [{"pristine": options.pristine}]
    if options.only is not None:
        return [{"seed": options.seed, "number": options.only}]
    found: list[Job] = [{"crafted": name} for name in CRAFTED]
    found += [{"pristine": number} for number in range(len(Source().seeds))]
    return found + [{"seed": options.seed, "number": number} for number in range(options.files)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Take mutated files through all that a user can do with them."
    )
    parser.add_argument("--files", type=int, default=FILES, help=f"how many, {FILES} by default")
    parser.add_argument(
        "--seed",
        type=lambda text: random.randrange(1 << 32) if text == "random" else int(text),
        default=SEED,
        help="a number, or `random`",
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one file of the campaign alone")
    parser.add_argument("--pristine", type=int, metavar="NUMBER", help="one valid file alone")
    parser.add_argument(
        "--crafted", action="append", choices=("all", *CRAFTED), metavar="NAME", help="a file made by hand"
    )
    parser.add_argument("--keep", type=Path, help="the folder for the files of findings")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    # In memory where that is possible: the campaign is about files, and not about disks.
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        results = run(_jobs(options), Path(folder), workers=options.workers, quiet=False)
    for found in grouped(results):
        print(line(*found))
    bad = [result for result in results if result.findings]
    refused = Counter(result.refused for result in results)
    print(f"refused at: {dict(refused.most_common())}")
    print(f"{sum(result.compared for result in results)} results compared with what they must be")
    if bad:
        out = options.keep or Path(tempfile.mkdtemp(prefix="soak-"))
        keep(results, out)
        print(f"the files of the findings are in {out}")
    if len(results) == 1:
        print(results[0].name, results[0].refused or "read", results[0].message, results[0].took)
    print(f"{len(results) - len(bad)} passed, {len(bad)} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
