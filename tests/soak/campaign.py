"""The campaign of mutated files: `python -m tests.soak.campaign [--files N] [--seed S] [--workers N]`.

Every file is taken through all that a user can do with it, in a process with limits of CPU time and memory.
It must give a right result or an error of the library's family. Findings are printed in groups of one cause.
The file of each is kept, with how to take it again. The exit status is 1 where there is a finding.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .crafted import CRAFTED
from .source import Source
from .stages import Finding

FILES = 20_000
SEED = 20261126
WAIT = 120.0
"""Seconds after which a process that gives no answer is ended: it waits for something, as its CPU time has a
limit of its own."""
Job = dict[str, Any]


@dataclass
class Result:
    """What became of a file."""

    job: Job
    name: str
    findings: tuple[Finding, ...] = ()
    refused: str | None = None
    message: str = ""
    compared: int = 0
    took: float = 0.0


class Worker:
    """A process that takes files, each in a child with limits."""

    def __init__(self, folder: Path) -> None:
        self.traces = folder / "traces.txt"
        errors = folder / "errors.txt"
        room = folder / "room"
        room.mkdir(parents=True)
        self.traces.write_text("")
        with errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.worker", str(room), str(self.traces)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        if self._line(math.inf) != "ready\n":
            self.stop()
            raise RuntimeError(f"a worker does not start: {errors.read_text()}")

    def _line(self, seconds: float = WAIT) -> str:
        """The next line of the process; "" where it ended, or was ended after these seconds."""
        assert self.process.stdout is not None
        if math.isinf(seconds):
            return self.process.stdout.readline()
        timer = threading.Timer(seconds, lambda: os.killpg(self.process.pid, signal.SIGKILL))
        timer.start()
        try:
            return self.process.stdout.readline()
        finally:
            timer.cancel()

    def take(self, job: Job) -> Result | None:
        """What became of a file; None where nothing came back in time, after which the worker is gone."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        line = self._line()
        if not line:
            return None
        answer = json.loads(line)
        if "died" in answer:
            finding = Finding("died", "?", f"status {answer['died']}", self._place(), "")
            return Result(job, json.dumps(job), (finding,))
        findings = tuple(Finding(**one) for one in answer.pop("findings"))
        return Result(job, findings=findings, **answer)

    def _place(self) -> str:
        """The innermost line of the library in the stack that a dying process wrote."""
        stacks = self.traces.read_text(errors="replace").splitlines()
        self.traces.write_text("")
        for line in stacks:
            if "/lycoris_ops/" in line and "File" in line:
                return line.strip().rpartition("/lycoris_ops/")[2].replace('"', "")
        return ""

    def stop(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self.process.wait()


def run(jobs: Iterable[Job], folder: Path, *, workers: int = 2, quiet: bool = True) -> list[Result]:
    """Take the files of all jobs, in any order; `folder` is an empty one to work in."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    total = 0
    for job in jobs:
        waiting.put(job)
        total += 1
    results: list[Result] = []
    failed: list[BaseException] = []
    started = time.monotonic()

    def work(number: int) -> None:
        started_ones = 0
        worker: Worker | None = None
        try:
            while not failed:
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    return
                if worker is None:
                    started_ones += 1
                    worker = Worker(folder / f"worker{number}-{started_ones}")
                result = worker.take(job)
                if result is None:
                    worker.stop()
                    worker = None
                    waits = Finding("time", "?", f"no answer in {WAIT:g} s", "", "")
                    result = Result(job, json.dumps(job), (waits,))
                results.append(result)
                if not quiet and len(results) % 500 == 0:
                    rate = len(results) / (time.monotonic() - started)
                    print(f"{len(results)} of {total} files, {rate:.0f} a second", file=sys.stderr)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that waits
            failed.append(error)
        finally:
            if worker is not None:
                worker.stop()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(min(workers, max(1, total)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
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
    again = (
        f"--crafted {result.job['crafted']}"
        if "crafted" in result.job
        else f"--pristine {result.job['pristine']}"
        if "pristine" in result.job
        else f"--seed {result.job['seed']} --only {result.job['number']}"
    )
    return (
        f"{times:5d} {finding.what}: {finding.stage}: {finding.kind} at {finding.where or '-'}: "
        f"{finding.message} [{result.name}; {again}]"
    )


def keep(results: Sequence[Result], folder: Path) -> None:
    """Write the file of each group of findings, with its outcome, to a folder."""
    source = Source()
    for number, (_, finding, result) in enumerate(grouped(results)):
        out = folder / f"{number:03d}"
        for name, blob in _case(source, result.job).items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blob)
        (out / "outcome.json").write_text(json.dumps({"job": result.job, **finding.table()}, indent=2))


def _case(source: Source, job: Job) -> dict[str, bytes]:
    if "crafted" in job:
        return dict(CRAFTED[job["crafted"]]().files)
    if "pristine" in job:
        return dict(source.pristine()[job["pristine"]].files)
    return dict(source.mutated(job["seed"], job["number"]).files)


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
    print(f"{sum(result.compared for result in results)} results compared with independent computations")
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
