"""What every benchmark here does: works take turns in one process, and a table tells their medians."""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from tests.harness.facts import facts

Times = dict[str, list[float]]
"""The milliseconds of each round, by the name of the work."""


def parser(doc: str | None, *, rounds: int, device: bool = False) -> argparse.ArgumentParser:
    """The options that benchmarks share: the number of rounds, and the device where it can be chosen."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds)
    if device:
        made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return made


def boot(device: str = "cpu") -> None:
    """Make the host importable, without its reading this program's command line."""
    # At the end of the path: the host has a package `tests` too.
    sys.path.append(str(facts().comfyui))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = device == "cpu"


def milliseconds(work: Callable[[], object], device: str = "cpu") -> float:
    start = _clock(device)
    work()
    return 1e3 * (_clock(device) - start)


def _clock(device: str) -> float:
    # A call on a GPU returns before the work is done.
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turn(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    before: Callable[[str], object] = lambda name: None,
    warm: int = 1,
    device: str = "cpu",
    seconds: float = 0.0,
) -> Times:
    """Measure works that take turns. Each round begins with another one: what ran just before matters.

    before: done ahead of each work, outside of its time. warm: rounds that set things up and do not count.
    seconds: go on beyond the rounds until so many have passed.
    """
    times: Times = {name: [] for name in works}
    order, number, began = list(works), 0, time.perf_counter()
    while number < rounds + warm or time.perf_counter() - began < seconds:
        for name in order:
            before(name)
            took = milliseconds(works[name], device)
            if number >= warm:
                times[name].append(took)
        order, number = [*order[1:], order[0]], number + 1
    return times


def middle(times: Times) -> dict[str, float]:
    return {name: statistics.median(found) for name, found in times.items()}


def ratio(times: Times, name: str, other: str) -> float:
    """The median over the rounds of one work's time over another's."""
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))


class Resident:
    """The resident memory of a process as the kernel counts it, in MB."""

    def __init__(self, pid: int | str = "self") -> None:
        self._folder = Path(f"/proc/{pid}")

    def forget(self) -> None:
        """Start the peak anew; in this process after giving back what is free."""
        if self._folder.name == "self":
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        (self._folder / "clear_refs").write_text("5", encoding="ascii")

    def _told(self, field: str) -> float:
        lines = (self._folder / "status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e3

    @property
    def now(self) -> float:
        return self._told("VmRSS")

    @property
    def peak(self) -> float:
        """The most since the last `forget`."""
        return self._told("VmHWM")


class Table:
    """A table in Markdown that is printed row by row."""

    def __init__(self, *titles: str) -> None:
        self.row(*titles)
        self.row(*("---" for _ in titles))

    @staticmethod
    def row(*cells: object) -> None:
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def versions() -> str:
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, ComfyUI {facts().host}"
