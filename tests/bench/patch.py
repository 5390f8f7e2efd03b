"""Patching weights by this pack ("ours"), ComfyUI, lycoris-lora and PEFT, side by side.

`python -m tests.bench.patch [--device cuda] [--rounds N] [--cases TEXT] [--layers SET]` prints the table of
the README and writes `.cache/bench/patch-<device>-<set>.csv`, which has quantiles, the times with a copy of
the weight, device and versions too. One round patches all layers of a set of `cases.SETS` by each peer in
turn; the weights are reset outside the timing.

Times and ratios are medians of mode "in place", which patches a copy that is there already, with the default
malloc / with the tuned malloc. Mode "with copy" clones the weight first, as ComfyUI does. A ratio is the
peer's time over ours. Memory is what the process grows by while it patches, beyond the weights. The error is
that of the result against a computation in float64, over the error of rounding the exact result once.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lycoris_ops as lyc
from lycoris_ops.patch.registry import PATHS, path_report
from tests.bench.cases import CASES, DTYPES, SETS, Case, Stack, base
from tests.bench.peers import PEERS, Patch, plan_of
from tests.bench.side import Resident, Table, boot, in_turn, parser
from tests.harness.facts import ROOT, facts

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
which are much of the peers' time.
"""
COPYING = ("ours", "ComfyUI")
"""Peers that are measured with a copy of the weight too: both patch within ComfyUI, which makes one."""
LINEAR_ALONE = ("lycoris-lora", "PEFT")
"""Peers that `peers.py` calls for linear layers only."""
SHOWN = ("ComfyUI", "lycoris-lora", "PEFT", "ours: torch")
"""The peers with a column in the table, and one of our paths alone."""


@dataclass(frozen=True)
class Row:
    """One measured line of the file."""

    case: str
    dtype: str
    adapters: int
    peer: str
    path: str
    mode: str
    malloc: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    ratio: float
    """The peer's median over ours."""
    error_over_floor: float
    extra_mb: float
    bandwidth_share: float | None
    """The share of the card's memory bandwidth, for one reading and writing of each weight; None on a CPU."""
    device: str
    versions: str


def by_path(path: Any, stack: Stack, weight: Tensor) -> Patch:
    """This pack restricted to one of its patch paths."""
    plan = plan_of(stack, weight)

    @torch.no_grad()
    def patch(target: Tensor) -> Tensor:
        path.apply(plan, target, plan.tensors, plan.strengths)
        return target

    return patch


def peers(device: str, stack: Stack, weights: list[Tensor]) -> dict[str, Callable[[Stack, Tensor], Patch]]:
    """All that can be measured on these weights: the peers, and each of our paths alone as `ours: <path>`.

    For a path the first weight decides.
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
def measure(case: Case, dtype: str, malloc: str, device: str, rounds: int, layers: str) -> list[Row]:
    """Measure one case by every peer; `malloc` only names the setting that this process was started with."""
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

    def run(peer: str, copied: bool = False) -> None:
        for patch, weight in zip(patches[peer], weights if copied else work, strict=True):
            patch(weight.clone() if copied else weight)

    extra: dict[str, float] = {}
    for peer in patches:
        reset(peer)
        # Caches and compiled kernels are not the memory of a patch, so they are made first.
        run(peer)
        extra[peer] = extra_memory(partial(run, peer), device)
    works: dict[str, Callable[[], object]] = {f"{peer}, in place": partial(run, peer) for peer in patches}
    works |= {f"{peer}, with copy": partial(run, peer, True) for peer in COPYING}
    times = in_turn(works, rounds, before=reset, device=device, warm=0)
    moved = 2 * sum(weight.nbytes for weight in weights)
    rows: list[Row] = []
    for name, found in times.items():
        peer, mode = name.split(", ")
        low, _, _, high = statistics.quantiles(found, n=5, method="inclusive") if rounds > 1 else found * 4
        middle = statistics.median(found)
        rows.append(
            Row(
                case=case.name,
                dtype=dtype,
                adapters=len(case.kinds),
                peer=peer,
                path=chosen_paths(stacks, weights) if peer == "ours" else "",
                mode=mode,
                malloc=malloc,
                p20_ms=round(low, 2),
                p50_ms=round(middle, 2),
                p80_ms=round(high, 2),
                ratio=round(middle / statistics.median(times[f"ours, {mode}"]), 2),
                error_over_floor=round(error_over_floor(patches[peer][-1], stacks[-1], weights[-1]), 3),
                extra_mb=round(extra[peer], 1),
                bandwidth_share=share(moved, middle / 1e3) if device == "cuda" else None,
                device=device_name(device),
                versions=versions(),
            )
        )
    return rows


def share(moved: int, seconds: float) -> float | None:
    """The share of the card's memory bandwidth that moving so many bytes in a time takes; None if unknown."""
    card: Any = torch.cuda.get_device_properties(0)
    clock_rate, width = getattr(card, "memory_clock_rate", 0), getattr(card, "memory_bus_width", 0)
    peak = 2 * clock_rate * 1e3 * width / 8
    return round(moved / seconds / peak, 3) if peak else None


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    model, told = platform.processor() or "cpu", Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def versions() -> str:
    found = [f"ComfyUI {facts().host}"]
    for package in ("torch", "lycoris-lora", "peft", "triton"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def by_malloc(rows: list[Row], peer: str, field: str, digits: int) -> str:
    """A field of a peer's rows, default malloc / tuned malloc; "-" where it was not measured."""
    own = [row for row in rows if row.peer == peer and row.mode == "in place"]
    return " / ".join(f"{getattr(row, field):.{digits}f}" for row in own) or "-"


def shown(table: Table, rows: list[Row]) -> None:
    """The row of a case and dtype. Error and memory are the larger of the two mallocs."""
    ours = [row for row in rows if row.peer == "ours"]
    worst = (f"{max(row.error_over_floor for row in ours):.2f}", f"{max(row.extra_mb for row in ours):.0f}")
    ratios = (by_malloc(rows, peer, "ratio", 1) for peer in SHOWN)
    times = by_malloc(rows, "ours", "p50_ms", 0)
    table.row(ours[0].case, ours[0].dtype, ours[0].path, times, *ratios, *worst)


def in_a_child(case: str, dtype: str, malloc: str, options: argparse.Namespace) -> list[Row]:
    """The rows of one case, in a process of its own: what one leaves in the allocator speeds up the next."""
    command = [sys.executable, "-m", "tests.bench.patch", "--child", malloc, case, dtype]
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
    made.add_argument("--child", nargs=3, metavar=("MALLOC", "CASE", "DTYPE"), help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.child:
        malloc, case, dtype = options.child
        boot(options.device)
        found = next(one for one in CASES if one.name == case)
        for row in measure(found, dtype, malloc, options.device, options.rounds, options.layers):
            print(json.dumps(asdict(row)), flush=True)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("No CUDA device: run `make bench` for the CPU")
    # On CUDA the weights are not in memory that the C library hands out.
    mallocs = list(SETTINGS) if options.device == "cpu" else ["default"]
    dtypes = ("fp32", "bf16") if options.device == "cpu" else ("fp32", "bf16", "fp16")
    names = [one.name for one in CASES if options.cases in one.name]
    titles = ["ComfyUI", "lycoris-lora", "PEFT", "torch path", "error / floor", "extra MB"]
    table, rows = Table("stack", "dtype", "path", "ours ms", *titles), list[Row]()
    for case, dtype in product(names, dtypes):
        found = [row for malloc in mallocs for row in in_a_child(case, dtype, malloc, options)]
        shown(table, found)
        rows += found
    target = ROOT / ".cache" / "bench" / f"patch-{options.device}-{options.layers}.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    print(f"\n{rows[0].device}; {rows[0].versions}\n{target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
