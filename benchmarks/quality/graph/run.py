"""Adapters that nodes train in the graph: this pack's, planned, searched and by hand, beside ComfyUI's own.

`python -m benchmarks.quality.graph.run` trains what `results.jsonl` beside this file does not have. All
nodes get the same pictures, captions and model, see `shapes.py`, and what they give is judged in the same
way: the host patches its model with the file. Rates are found on the split "tune" after the middle number of
steps, in half decades, until the best lies between two others.
"""

from __future__ import annotations

import argparse
import math
import time

from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process

from ..run import OutOfTimeError, processor
from ..search import best
from .rows import RECIPE, SEARCHED_AT, SEEDS, SHAPES, STEPS, Key, Row, add, read
from .shapes import Host
from .ways import WAYS, Asked, Way

WIDTH = 2
"""How far apart rates are, in quarters of a decade."""


class Bench:
    def __init__(self, host: Host, until: float) -> None:
        self.host, self.until = host, until
        self.found = read()
        self.before, _ = host.held_out({}, "test")

    def row(self, way: Way, size: int, step: int | None, steps: int, seed: int) -> Row:
        key = Key(RECIPE, way.name, size, step, steps, seed)
        if key in self.found:
            return self.found[key]
        if time.monotonic() > self.until:
            raise OutOfTimeError
        lr = None if step is None else 10 ** (step / 4)
        try:
            made = way.train(Asked(self.host, size, lr, steps, seed))
        except Exception as error:
            # The nodes have their own copy of the library and its errors.
            if type(error).__name__ != "DivergedError":
                raise
            lost = Row(key, 0, self.before, math.inf, math.inf, math.inf, 0.0, str(error), processor())
            add(lost)
            self.found[key] = lost
            print(f"{way.name:24} {size:3} rate {lr} steps {steps} seed {seed} diverged", flush=True)
            return lost
        tune, _ = self.host.held_out(made.tensors, "tune")
        test, theirs = self.host.held_out(made.tensors, "test")
        told = (made.told, processor())
        row = Row(key, made.numbers, self.before, tune, test, theirs, made.seconds, *told)
        add(row)
        self.found[key] = row
        rate = "its own" if lr is None else f"{lr:.1e}"
        print(
            f"{way.name:24} {size:3} rate {rate} steps {steps} seed {seed} {row.numbers:7} numbers  "
            f"tune {tune:.4f} test {test:.4f} {theirs:.4f}  {made.seconds:.1f} s  {made.told}",
            flush=True,
        )
        return row

    def way(self, way: Way, seeds: tuple[int, ...]) -> None:
        for size in way.sizes:
            step = way.start
            if step is not None:
                step = best(lambda step: self.row(way, size, step, SEARCHED_AT, 0).tune, step, WIDTH)  # noqa: B023
            for seed in seeds:
                for steps in STEPS if seed == SEEDS[0] else (SEARCHED_AT,):
                    self.row(way, size, step, steps, seed)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many minutes")
    made.add_argument("--ways", nargs="+", choices=[way.name for way in WAYS], help="these alone")
    options = made.parse_args()
    folder = base_directory(ROOT / ".cache" / "bench" / "graph", ROOT)
    nodes = boot_in_process(facts().comfyui, folder)
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    host = Host(nodes, folder, SHAPES)
    bench = Bench(host, time.monotonic() + 60 * options.minutes)
    own, _ = host.held_out({}, "test", hatched=False)
    print(f"base: {own:.4f} on its own pictures, {bench.before:.4f} on others", flush=True)
    ways = [way for way in WAYS if not options.ways or way.name in options.ways]
    try:
        for seeds in (SEEDS[:1], SEEDS):
            for way in ways:
                bench.way(way, seeds)
    except OutOfTimeError:
        print(f"stopped after {options.minutes:g} minutes; the same command goes on")


if __name__ == "__main__":
    main()
