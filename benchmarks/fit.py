"""Resizing and extraction, side by side with ComfyUI's LoraSave, PEFT and sd-scripts' way.

`python -m benchmarks.fit` takes layers of the sizes that SDXL and Flux have, with known singular values. For
each it measures in one process:

- extract: our fit of a dense difference at rank 16 and 64, and `extract_lora` of the host's LoraSave;
- resize: our fit of a LoRA of rank 64 at rank 16, PEFT's `add_weighted_adapter(combination_type="svd")`, and
  the product and full decomposition that `networks/resize_lora.py` of sd-scripts computes.

The error of each is given relative to the best possible one. The largest layer is not given to the peers,
which would take minutes for it. Last comes the peak memory of extracting from two checkpoints.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.side import boot, milliseconds
from lycoris_ops.algorithms import ALGORITHMS
from lycoris_ops.algorithms.fitting import Delta
from lycoris_ops.changes.forms import Dense
from tests.harness.facts import ROOT

SIZES = {"SDXL attention": (1280, 1280), "SDXL feed-forward": (1280, 5120), "Flux attention": (3072, 3072)}
LARGE = {"Flux feed-forward": (12288, 3072)}
SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "1/i": lambda i: 1 / i,
    "i^-0.5": lambda i: i**-0.5,
    "flat": torch.ones_like,
}
OLD, NEW = 64, 16


def orthonormal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns))[0]


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that `work` takes, and its result."""
    made: list[Any] = []
    return milliseconds(lambda: made.append(work())) / 1e3, made[0]


def error(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).norm() / wanted.norm())


def ours(forms: tuple[Any, ...], shape: tuple[int, int], rank: int) -> Callable[[], Tensor]:
    def run() -> Any:
        delta = Delta(forms, shape, largest=rank)
        return ALGORITHMS["lora"].fit(delta)[0].layer(rank - 1)

    return run


def extraction(name: str, shape: tuple[int, int], *, peers: bool) -> None:
    from comfy_extras.nodes_lora_extract import extract_lora

    count = min(shape)
    index = torch.arange(1, count + 1, dtype=torch.float32)
    left, right = orthonormal(shape[0], count), orthonormal(shape[1], count)
    for spectrum, law in SPECTRA.items():
        values = law(index)
        matrix = (left * values) @ right.T
        for rank in (NEW, OLD):
            best = float((values[rank:].square().sum() / values.square().sum()).sqrt())
            took, layer = seconds(ours((Dense(matrix),), shape, rank))
            found = error(layer.delta(torch.zeros(shape)), matrix) / best
            line = f"extract  {name:18} {spectrum:7} rank {rank:3}  ours {took:7.3f} s, "
            line += f"{found:.4f} of the best error"
            if peers and rank == NEW and spectrum == "1/i":
                took_core, (up, down) = seconds(partial(extract_lora, matrix, NEW))
                line += f";  LoraSave {took_core:7.2f} s ({took_core / took:.0f}x), "
                line += f"{error(up @ down, matrix) / best:.2f}"
            print(line, flush=True)


def resizing(name: str, shape: tuple[int, int], *, peers: bool) -> None:
    from peft import LoraConfig, get_peft_model

    index = torch.arange(1, OLD + 1, dtype=torch.float32)
    up, down = orthonormal(shape[0], OLD) / index, orthonormal(shape[1], OLD).T
    layer = ALGORITHMS["lora"].load({"lora_up.weight": up, "lora_down.weight": down})
    took, made = seconds(ours(layer.forms(), shape, NEW))
    matrix = up @ down
    best = float((index[NEW:] ** -2).sum().div((index**-2).sum()).sqrt())
    found = error(made.delta(torch.zeros(shape)), matrix) / best
    line = f"resize   {name:18} {OLD} to {NEW}          ours {took:7.3f} s, {found:.4f} of the best error"
    if peers:
        module = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
        config = LoraConfig(r=OLD, lora_alpha=OLD, target_modules=["0"])
        model = get_peft_model(module, config, "first")
        # PEFT decomposes nothing for a single adapter, so add a second one, which is zero.
        model.add_adapter("second", config)
        with torch.no_grad():
            target: Any = model.base_model.get_submodule("model.0")
            target.lora_A["first"].weight.copy_(down)
            target.lora_B["first"].weight.copy_(up)
            merge: Any = model.add_weighted_adapter
            names, weights = ["first", "second"], [1.0, 1.0]
            took_peft, _ = seconds(partial(merge, names, weights, "both", "svd", svd_rank=NEW))
            theirs = target.get_delta_weight("both")
        took_scripts, _ = seconds(lambda: torch.linalg.svd(up @ down))
        line += (
            f";  PEFT {took_peft:7.2f} s ({took_peft / took:.0f}x), {error(theirs, matrix) / best:.2f}"
            f";  sd-scripts {took_scripts:7.2f} s ({took_scripts / took:.0f}x)"
        )
    print(line, flush=True)


def memory() -> None:
    """The growth of the peak of resident memory in an extraction of two checkpoints of 1 GB each."""
    shapes = {f"blocks.{n}.linear.weight": (3072, 3072) for n in range(40)}
    shapes |= {f"blocks.{n}.wide.weight": (12288, 3072) for n in range(3)}
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        paths = [Path(folder) / name for name in ("base.safetensors", "tuned.safetensors")]
        for number, path in enumerate(paths):
            tensors = {}
            for place, (key, shape) in enumerate(shapes.items()):
                generator = torch.Generator().manual_seed(place)
                weight = torch.randn(shape, generator=generator) * 0.02
                if number:
                    weight += torch.randn(shape[0], 4) @ torch.randn(4, shape[1]) * 1e-3
                tensors[key] = weight.to(torch.bfloat16)
            save_file(tensors, path)
            del tensors, weight
        # Writing the files has raised the peak of this process too far, so measure in a child.
        code = (
            "import re, sys, lycoris_ops as lyc\n"
            # Not `resource.getrusage`, whose peak a child inherits.
            "def peak():\n"
            "    return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
            "before = peak()\n"
            "made = lyc.extract_adapter(sys.argv[1], sys.argv[2], size=lyc.Rank(16))\n"
            "print(peak() - before, made.file.size / 1e6)\n"
        )
        took, result = seconds(
            lambda: subprocess.run(
                [sys.executable, "-c", code, *map(str, paths)], check=True, capture_output=True, text=True
            )
        )
        grown, size = map(float, result.stdout.split())
    largest = 2 * 12288 * 3072 / 2**20
    each = sum(math.prod(s) for s in shapes.values()) * 2 / 1e9
    print(
        f"memory   {each:.2f} GB each, {took:.0f} s: peak {grown:.0f} MiB above the start, of "
        f"{12 * largest + 300:.0f} allowed (largest tensor {largest:.0f}; adapter {size:.0f} MB)"
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    boot()
    torch.manual_seed(0)
    for name, shape in {**SIZES, **LARGE}.items():
        extraction(name, shape, peers=name in SIZES)
        resizing(name, shape, peers=name in SIZES)
    memory()


if __name__ == "__main__":
    main()
