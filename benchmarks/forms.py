"""The two forms of a layer, beside its module and by a rebuilt weight: which takes less, by width and tokens.

`python -m benchmarks.forms [--rounds N] [--kinds TEXT ...] [--widths N ...] [--tokens N ...]` prints a table
for each kind: the CPU time of a step of a square linear layer by `form="bypass"`, over that by
`form="rebuilt"`. A step is forward and backward, with gradients for the input and for the layer. Below 1 the
bypass takes less. Both are lower quartiles over the rounds; the two take turns, on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import torch

from benchmarks.launches import KINDS, Kind, ours
from benchmarks.side import Table, parser
from tests.harness.launches import works_of

BUDGET = 0.8
"""About how many seconds each cell takes at most."""


def ratio(kind: Kind, width: int, tokens: int, rounds: int) -> float:
    makers = {form: partial(ours, kind=kind, form=form) for form in ("bypass", "rebuilt")}
    works, forget = works_of(width, "cpu", makers, tokens=tokens)
    steps, times = works["step"], {form: list[float]() for form in makers}
    began, number = time.process_time(), 0
    while number < rounds + 3 and (number < 9 or time.process_time() - began < BUDGET):
        for form in sorted(makers, reverse=number % 2 == 1):
            forget(form)
            start = time.process_time()
            steps[form]()
            if number >= 3:
                times[form].append(time.process_time() - start)
        number += 1
    first, second = (statistics.quantiles(times[form], n=4)[0] for form in makers)
    return first / second


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    for kind in KINDS:
        if options.kinds and kind.title not in options.kinds:
            continue
        print(f"\n{kind.title}\n")
        table = Table("width", *(f"{tokens} tokens" for tokens in options.tokens))
        for width in options.widths:
            table.row(width, *(f"{ratio(kind, width, n, options.rounds):.2f}" for n in options.tokens))


if __name__ == "__main__":
    known = parser(__doc__, rounds=60)
    known.add_argument("--kinds", nargs="*", default=())
    known.add_argument("--widths", nargs="*", type=int, default=(64, 128, 256, 384, 512, 1024, 2048, 4096))
    known.add_argument("--tokens", nargs="*", type=int, default=(1, 16, 77, 256, 1024, 4096))
    main(known.parse_args())
