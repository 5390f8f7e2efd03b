"""Patching weights by this pack ("ours"), ComfyUI, lycoris-lora and PEFT, side by side.

`python -m tests.bench.patch [--device cuda] [--rounds N] [--cases TEXT] [--layers SET]` prints a
table and writes `.cache/bench/patch-<device>-<set>.csv` and `.png`. One round patches all layers of a set of
`cases.SETS` by each peer in turn; the weights are reset outside the timing.

Mode "in place" patches a copy that is there already, mode "with copy" clones the weight first, as ComfyUI
does. Memory is what the process grows by while it patches, beyond the weights. The error is that of the
result against a computation in float64, over the error of rounding the exact result once.
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
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lycoris_ops as lyc
from lycoris_ops.patch.registry import PATHS, path_report
from tests.bench.cases import CASES, DTYPES, SETS, Case, base
from tests.bench.peers import PEERS, Patch, Stack
from tests.harness.facts import ROOT, facts

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
SETTINGS: dict[str, dict[str, str]] = {"default": {}, "tuned": TUNED}
"""Environments that tell the C library how to hand out memory.

With "tuned" it keeps freed memory. With "default" it gives large blocks back, so new ones cause page faults,
which are much of the peers' time.
"""
OUT = ROOT / ".cache" / "bench"
COPYING = ("ours", "ComfyUI")
"""Peers that are measured with a copy of the weight too: both patch within ComfyUI, which makes one."""


@dataclass(frozen=True)
class Row:
    """One measured line of the table."""

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


def by_path(name: str) -> Callable[[Stack, Tensor], Patch] | None:
    """This pack restricted to one of its patch paths; None where that cannot run on this machine."""
    path = next(path for path in PATHS if path.name == name)

    def prepare(stack: Stack, weight: Tensor) -> Patch:
        layers = [(lyc.ALGORITHMS[kind].load(tensors), strength) for kind, tensors, strength in stack]
        plan = lyc.PatchPlan.build(weight.shape, weight.dtype, weight.device, layers)

        @torch.no_grad()
        def patch(target: Tensor) -> Tensor:
            path.apply(plan, target, plan.tensors, plan.strengths)
            return target

        return patch

    return prepare if path.needs() is None else None


def peers(device: str) -> dict[str, Callable[[Stack, Tensor], Patch]]:
    """All that is measured on a device: the peers, and each of our paths alone as `ours: <path>`."""
    found = dict(PEERS)
    for path in PATHS:
        prepare = by_path(path.name) if device in path.devices else None
        if prepare:
            found[f"ours: {path.name}"] = prepare
    return found


def chosen_paths(stacks: list[Stack], weights: list[Tensor]) -> str:
    """The names of the paths by which ours patches these weights, in the order of their first use."""
    found = (chosen_path(stack, weight) for stack, weight in zip(stacks, weights, strict=True))
    return " + ".join(dict.fromkeys(found))


def chosen_path(stack: Stack, weight: Tensor) -> str:
    """The name of the path by which ours patches a weight."""
    layers = [(lyc.ALGORITHMS[kind].load(tensors), strength) for kind, tensors, strength in stack]
    plan = lyc.PatchPlan.build(weight.shape, weight.dtype, weight.device, layers)
    return path_report(plan, weight).partition(";")[0].removeprefix("path ")


LINEAR_ALONE = ("lycoris-lora", "PEFT")
"""Peers that `peers.py` calls for linear layers only."""


def takes(peer: str, stacks: list[Stack], weights: list[Tensor]) -> bool:
    """Whether a peer, or one of our paths, can patch these weights; for a path the first weight decides."""
    if peer in LINEAR_ALONE:
        return all(weight.ndim == 2 for weight in weights)
    name = peer.removeprefix("ours: ")
    path = next((path for path in PATHS if path.name == name), None)
    if path is None:
        return True
    layers = [(lyc.ALGORITHMS[kind].load(tensors), strength) for kind, tensors, strength in stacks[0]]
    plan = lyc.PatchPlan.build(weights[0].shape, weights[0].dtype, weights[0].device, layers)
    return path.refusal(plan, weights[0]) is None


def clock(device: str) -> float:
    # A call on a GPU returns before the work is done.
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def status_kb(field: str) -> int:
    """A field of the kernel's account of this process's memory, in kB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def extra_memory(work: Callable[[], object], device: str) -> float:
    """Megabytes by which the process, or the card's allocator, grows at its peak; NaN where unknown."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    # 5 resets the peak of the resident memory (VmHWM) to what is resident.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status_kb("VmRSS")
    work()
    return max(0, status_kb("VmHWM") - before) / 1e3


def error_over_floor(patch: Patch, stack: Stack, weight: Tensor) -> float:
    """The norm of the result's error, over that of the error of rounding the exact result once."""
    exact = weight.double()
    for kind, tensors, strength in stack:
        exact = exact + strength * lyc.ALGORITHMS[kind].load(tensors).delta(weight.double())
    floor = (exact.to(weight.dtype).double() - exact).norm()
    return float((patch(weight.clone()).double() - exact).norm() / floor)


def measure(case: Case, dtype: str, malloc: str, device: str, rounds: int, layers: str) -> list[Row]:
    """Measure one case by every peer; `malloc` only names the setting that this process was started with."""
    made = SETS[layers]
    weights = [base(n, shape, DTYPES[dtype]).to(device) for n, shape in enumerate(made.layers)]
    stacks = [case.factors(n, shape, DTYPES[dtype], made.split) for n, shape in enumerate(made.layers)]
    stacks = [[(k, {n: t.to(device) for n, t in f.items()}, s) for k, f, s in stack] for stack in stacks]
    patches = {
        peer: [prepare(stack, weight) for stack, weight in zip(stacks, weights, strict=True)]
        for peer, prepare in peers(device).items()
        if takes(peer, stacks, weights)
    }
    work = [weight.clone() for weight in weights]
    times: dict[tuple[str, str], list[float]] = {}
    extra: dict[str, float] = {}

    def run(peer: str) -> None:
        for patch, weight in zip(patches[peer], work, strict=True):
            patch(weight)

    with torch.no_grad():
        for number in range(rounds + 1):
            for peer in patches:
                for target, weight in zip(work, weights, strict=True):
                    target.copy_(weight)
                if number == 0:
                    # Caches and compiled kernels are not the memory of a patch, so they are made first.
                    run(peer)
                    extra[peer] = extra_memory(lambda peer=peer: run(peer), device)
                    continue
                start = clock(device)
                run(peer)
                times.setdefault((peer, "in place"), []).append(clock(device) - start)
                if peer in COPYING:
                    start = clock(device)
                    for patch, weight in zip(patches[peer], weights, strict=True):
                        patch(weight.clone())
                    times.setdefault((peer, "with copy"), []).append(clock(device) - start)
        errors = {
            peer: error_over_floor(found[-1], stacks[-1], weights[-1]) for peer, found in patches.items()
        }
    moved = 2 * sum(weight.nbytes for weight in weights)
    rows: list[Row] = []
    for (peer, mode), found in times.items():
        low, middle, high = (1e3 * value for value in quantiles(found))
        reference = 1e3 * statistics.median(times["ours", mode])
        rows.append(
            Row(
                case=case.name,
                dtype=dtype,
                adapters=len(case.adapters),
                peer=peer,
                path=chosen_paths(stacks, weights) if peer == "ours" else "",
                mode=mode,
                malloc=malloc,
                p20_ms=round(low, 2),
                p50_ms=round(middle, 2),
                p80_ms=round(high, 2),
                ratio=round(middle / reference, 2),
                error_over_floor=round(errors[peer], 3),
                extra_mb=round(extra[peer], 1),
                bandwidth_share=share(moved, middle / 1e3) if device == "cuda" else None,
                device=device_name(device),
                versions=versions(),
            )
        )
    return rows


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """The 20 %, 50 % and 80 % quantiles."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, _, _, high = statistics.quantiles(values, n=5, method="inclusive")
    return low, statistics.median(values), high


def share(moved: int, seconds: float) -> float | None:
    """The share of the card's memory bandwidth that moving so many bytes in a time takes; None if unknown."""
    card: Any = torch.cuda.get_device_properties(0)
    clock_rate, width = getattr(card, "memory_clock_rate", 0), getattr(card, "memory_bus_width", 0)
    peak = 2 * clock_rate * 1e3 * width / 8
    return round(moved / seconds / peak, 3) if peak else None


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    model = platform.processor() or "cpu"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def versions() -> str:
    named = {
        "torch": "torch",
        "lycoris-lora": "lycoris-lora",
        "peft": "peft",
        "triton": "triton",
    }
    found = [f"ComfyUI {facts().host}"]
    for label, package in named.items():
        try:
            found.append(f"{label} {version(package)}")
        except ModuleNotFoundError:
            continue
    return ", ".join(found)


def child(malloc: str, device: str, rounds: int, case: str, dtype: str, layers: str) -> None:
    """Measure one case in this process and print the rows as JSON, a line each."""
    # At the end of the path: the host has a package `tests` too.
    sys.path.append(str(facts().comfyui))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = device == "cpu"
    found = next(one for one in CASES if one.name == case)
    for row in measure(found, dtype, malloc, device, rounds, layers):
        print(json.dumps(asdict(row)), flush=True)


def table(rows: list[Row]) -> str:
    lines = ["| case | dtype | malloc | mode | who | p20 | p50 | p80 ms | ratio | error / floor | extra MB |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        who = f"ours ({row.path})" if row.peer == "ours" else row.peer
        lines.append(
            f"| {row.case} | {row.dtype} | {row.malloc} | {row.mode} | {who} | {row.p20_ms:.0f} | "
            f"{row.p50_ms:.0f} | {row.p80_ms:.0f} | {row.ratio:.1f} | {row.error_over_floor:.2f} | "
            f"{row.extra_mb:.0f} |"
        )
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.mode == "in place" and not row.peer.startswith("ours")]
    malloc = list(dict.fromkeys(row.malloc for row in shown))
    figure, axes = pyplot.subplots(len(malloc), 1, figsize=(11, 4.2 * len(malloc)), squeeze=False)
    for (axis,), setting in zip(axes, malloc, strict=True):
        here = [row for row in shown if row.malloc == setting]
        labels = list(dict.fromkeys(f"{row.case}\n{row.dtype}" for row in here))
        names = list(dict.fromkeys(row.peer for row in here))
        for number, name in enumerate(names):
            heights = {f"{row.case}\n{row.dtype}": row.ratio for row in here if row.peer == name}
            places = [n + (number - 1) * 0.27 for n in range(len(labels))]
            axis.bar(places, [heights.get(label, 0) for label in labels], 0.25, label=name)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(labels)), labels, fontsize=7)
        axis.set_ylabel("time over ours")
        axis.set_title(f"malloc {setting}: above 1 this pack is faster")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", default="", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument("--layers", choices=SETS, default="sdxl", help="the layers that are patched")
    parser.add_argument("--child", nargs=3, metavar=("MALLOC", "CASE", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        malloc, case, dtype = options.child
        child(malloc, options.device, options.rounds, case, dtype, options.layers)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("No CUDA device: run `make bench` for the CPU")
    # On CUDA the weights are not in memory that the C library hands out.
    settings = SETTINGS if options.device == "cpu" else {"default": {}}
    dtypes = ("fp32", "bf16") if options.device == "cpu" else ("fp32", "bf16", "fp16")
    rows: list[Row] = []
    # Each case has a process of its own: what one leaves in the allocator would speed up the next.
    for case, dtype, malloc in product(
        [one.name for one in CASES if options.cases in one.name], dtypes, settings
    ):
        command = [sys.executable, "-m", "tests.bench.patch", "--child", malloc, case, dtype]
        command += ["--device", options.device, "--rounds", str(options.rounds), "--layers", options.layers]
        environment = {**os.environ, **settings[malloc]}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False
        )
        if done.returncode:
            sys.exit(done.returncode)
        # Other lines are what the host and the peers print.
        found = [Row(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
        rows += found
        print("\n".join(table(found).splitlines()[2:]), flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    kind = f"{options.device}-{options.layers}"
    target = OUT / f"patch-{kind}.csv"
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    plot(rows, target.with_suffix(".png"))
    print(f"\n{table(rows)}\n\n{rows[0].device}; {rows[0].versions}")
    print(f"{target.relative_to(ROOT)}, and a plot beside it")


if __name__ == "__main__":
    main()
