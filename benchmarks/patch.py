"""Patching weights by this pack ("ours"), ComfyUI, lycoris-lora and PEFT, side by side.

`python -m benchmarks.patch [--device cuda] [--rounds N] [--cases TEXT] [--layers SET]` prints the table of
the README. One round patches all layers of a set of `cases.SETS` in place by each peer in turn; the weights
are reset outside the timing.

Times and ratios are medians, with the default malloc / with the tuned malloc. A ratio is the peer's time over
ours. Memory is what the process grows by while it patches, beyond the weights. "error / floor" is how far the
result is from a computation in float64, over the error of rounding the exact result once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lycoris_ops as lyc
from benchmarks.cases import CASES, DTYPES, SETS, Case, Stack, base
from benchmarks.peers import PEERS, Patch, plan_of
from benchmarks.side import Resident, Table, boot, in_turn, middle, parser, ratio, versions
from lycoris_ops.patch import registry
from lycoris_ops.patch.registry import PATHS, path_report
from tests.harness.facts import ROOT

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
    },
}
"""Environments that tell the C library how to hand out memory.

With "tuned" it keeps freed memory. With "default" it gives large blocks back, so new ones cause page faults,
which take much of the peers' time.
"""
LINEAR_ALONE = ("lycoris-lora", "PEFT")
"""Peers that `peers.py` calls for linear layers only."""
SHOWN = ("ComfyUI", "lycoris-lora", "PEFT", "ours: torch")
"""The peers with a column in the table, and one of our paths alone."""


@dataclass(frozen=True)
class Row:
    """What was measured of a peer on one case."""

    case: str
    dtype: str
    peer: str
    path: str
    milliseconds: float
    ratio: float
    """The peer's time over ours."""
    error_over_floor: float
    extra_mb: float


def by_path(path: Any, stack: Stack, weight: Tensor) -> Patch:
    """This pack restricted to one of its patch paths."""
    plan = plan_of(stack, weight)

    @torch.no_grad()
    def patch(target: Tensor) -> Tensor:
        path.apply([registry.Patch(plan, target, plan.tensors, plan.strengths)])
        return target

    return patch


def peers(device: str, stack: Stack, weights: list[Tensor]) -> dict[str, Callable[[Stack, Tensor], Patch]]:
    """All that can be measured on these weights: the peers, and each of our paths alone as `ours: <path>`.

    Whether a path can be used is asked for the first weight only.
    """
    linear = all(weight.ndim == 2 for weight in weights)
    found = {name: peer for name, peer in PEERS.items() if linear or name not in LINEAR_ALONE}
    plan = plan_of(stack, weights[0])
    for path in PATHS:
        if device in path.devices and path.needs() is None and path.refusal(plan, weights[0]) is None:
            found[f"ours: {path.name}"] = partial(by_path, path)
    return found


def chosen_paths(stacks: list[Stack], weights: list[Tensor]) -> str:
    """The names of the paths by which ours patches these weights, in the order of their first use."""
    said = (path_report(plan_of(*pair), pair[1]) for pair in zip(stacks, weights, strict=True))
    return " + ".join(dict.fromkeys(one.partition(";")[0].removeprefix("path ") for one in said))


def extra_memory(work: Callable[[], object], device: str) -> float:
    """Megabytes by which the process, or the card's allocator, grows at its peak; NaN where unknown."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    resident = Resident()
    resident.forget()
    before = resident.now
    work()
    return max(0, resident.peak - before)


def error_over_floor(patch: Patch, stack: Stack, weight: Tensor) -> float:
    """The norm of the result's error, over that of the error of rounding the exact result once."""
    exact = weight.double()
    for kind, tensors, strength in stack:
        exact = exact + strength * lyc.ALGORITHMS[kind].load(tensors).delta(weight.double())
    floor = (exact.to(weight.dtype).double() - exact).norm()
    return float((patch(weight.clone()).double() - exact).norm() / floor)


@torch.no_grad()
def measure(case: Case, dtype: str, device: str, rounds: int, layers: str) -> list[Row]:
    """Measure one case by every peer."""
    made = SETS[layers]
    weights = [base(n, shape, DTYPES[dtype]).to(device) for n, shape in enumerate(made.layers)]
    stacks = [case.stack(n, shape, DTYPES[dtype], made.split) for n, shape in enumerate(made.layers)]
    stacks = [[(k, {n: t.to(device) for n, t in f.items()}, s) for k, f, s in stack] for stack in stacks]
    patches = {
        peer: [prepare(stack, weight) for stack, weight in zip(stacks, weights, strict=True)]
        for peer, prepare in peers(device, stacks[0], weights).items()
    }
    work = [weight.clone() for weight in weights]

    def reset(name: str) -> None:
        for target, weight in zip(work, weights, strict=True):
            target.copy_(weight)

    def run(peer: str) -> None:
        for patch, weight in zip(patches[peer], work, strict=True):
            patch(weight)

    extra: dict[str, float] = {}
    for peer in patches:
        reset(peer)
        # Caches and compiled kernels are not the memory of a patch, so they are made first.
        run(peer)
        extra[peer] = extra_memory(partial(run, peer), device)
    times = in_turn(
        {peer: partial(run, peer) for peer in patches}, rounds, before=reset, device=device, warm=0
    )
    took = middle(times)
    return [
        Row(
            case=case.name,
            dtype=dtype,
            peer=peer,
            path=chosen_paths(stacks, weights) if peer == "ours" else "",
            milliseconds=took[peer],
            ratio=ratio(times, peer, "ours"),
            error_over_floor=error_over_floor(patches[peer][-1], stacks[-1], weights[-1]),
            extra_mb=extra[peer],
        )
        for peer in patches
    ]


def by_malloc(rows: list[Row], peer: str, field: str, digits: int) -> str:
    """A field of a peer's rows, default malloc / tuned malloc; "-" where it was not measured."""
    own = [row for row in rows if row.peer == peer]
    return " / ".join(f"{getattr(row, field):.{digits}f}" for row in own) or "-"


def shown(table: Table, rows: list[Row]) -> None:
    """The row of a case and dtype. Error and memory are the larger of the two mallocs."""
    ours = [row for row in rows if row.peer == "ours"]
    worst = (f"{max(row.error_over_floor for row in ours):.2f}", f"{max(row.extra_mb for row in ours):.0f}")
    ratios = (by_malloc(rows, peer, "ratio", 1) for peer in SHOWN)
    times = by_malloc(rows, "ours", "milliseconds", 0)
    table.row(ours[0].case, ours[0].dtype, ours[0].path, times, *ratios, *worst)


def in_a_child(case: str, dtype: str, malloc: str, options: argparse.Namespace) -> list[Row]:
    """The rows of one case, in a process of its own: what one leaves in the allocator speeds up the next."""
    command = [sys.executable, "-m", "benchmarks.patch", "--child", case, dtype]
    command += ["--device", options.device, "--rounds", str(options.rounds), "--layers", options.layers]
    environment = {**os.environ, **SETTINGS[malloc]}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    # Other lines are what the host and the peers print.
    return [Row(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    made = parser(__doc__, rounds=7, device=True)
    made.add_argument("--cases", default="", metavar="TEXT", help="only cases whose name contains this")
    made.add_argument("--layers", choices=SETS, default="sdxl", help="the layers that are patched")
    made.add_argument("--child", nargs=2, metavar=("CASE", "DTYPE"), help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.child:
        case, dtype = options.child
        boot(options.device)
        found = next(one for one in CASES if one.name == case)
        for row in measure(found, dtype, options.device, options.rounds, options.layers):
            print(json.dumps(asdict(row)), flush=True)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("No CUDA device: run `make bench` for the CPU")
    # On CUDA the weights are not in memory that the C library hands out.
    mallocs = list(SETTINGS) if options.device == "cpu" else ["default"]
    dtypes = ("fp32", "bf16") if options.device == "cpu" else ("fp32", "bf16", "fp16")
    names = [one.name for one in CASES if options.cases in one.name]
    titles = ["ComfyUI", "lycoris-lora", "PEFT", "torch path", "error / floor", "extra MB"]
    table = Table("stack", "dtype", "path", "ours ms", *titles)
    for case, dtype in product(names, dtypes):
        shown(table, [row for malloc in mallocs for row in in_a_child(case, dtype, malloc, options)])
    print(f"\n{versions()}")


if __name__ == "__main__":
    main()
