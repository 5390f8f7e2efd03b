"""The time of a merge into a file, against that of copying the file and patching its weights in memory.

`python -m tests.bench.merge_checkpoint [ROUNDS]` writes a small checkpoint in SD1.5's layout and merges three
adapters into it, all in one process. For each round it prints the seconds of a copy of the file, of the
patches alone, of the merge, and the ratio merge / (copy + patches).
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

import lycoris_ops as lyc
from tests.harness.adapters import RECIPES
from tests.harness.assets import adapter_file, assets
from tests.harness.base import write_base
from tests.harness.facts import ROOT

BLEND = ("lora", "loha", "lokr")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(rounds: int) -> None:
    files = [assets() / "loras" / adapter_file(RECIPES[name]) for name in BLEND]
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(file), 0.5) for file in files])
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        base, copy, out = (Path(folder) / name for name in ("base.safetensors", "copy", "out.safetensors"))
        write_base(base, channel_mult=(1, 2), num_res_blocks=1, dtype=torch.float16)
        with safe_open(base, "pt") as file:
            weights = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - no mapping
        shapes = {key: tuple(weight.shape) for key, weight in weights.items()}
        pairs = lyc.resolve(stack, shapes).pairs()

        def patch() -> None:
            for key, found in pairs.items():
                layers = [(entry.adapter.layer(match.layer), match.strength) for entry, match in found]
                lyc.patch_(weights[key], layers)

        print(f"{base.stat().st_size / 1e6:.0f} MB, {len(pairs)} weights merged, torch {torch.__version__}")
        print("copy s  patch s  merge s  ratio")
        ratios: list[float] = []
        for number in range(rounds + 1):
            copied = seconds(lambda: shutil.copyfile(base, copy))
            patched = seconds(patch)
            merged = seconds(lambda: lyc.merge_checkpoint(base, stack, out))
            if number:  # the first round warms the file cache
                ratios.append(merged / (copied + patched))
                print(f"{copied:6.2f}  {patched:7.2f}  {merged:7.2f}  {ratios[-1]:5.2f}")
        print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
