"""The time of a merge into a file, against that of copying the file and patching its weights in memory.

`python -m tests.bench.merge_checkpoint [--rounds N]` writes a small checkpoint in SD1.5's layout and merges
three adapters into it, all in one process. It prints the median milliseconds of a copy of the file, of the
patches alone and of the merge, and the ratio merge / (copy + patches).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import lycoris_ops as lyc
from tests.bench.side import Table, in_turn, middle, parser
from tests.harness.adapters import RECIPES
from tests.harness.assets import adapter_file, assets
from tests.harness.base import write_base
from tests.harness.facts import ROOT

BLEND = ("lora", "loha", "lokr")


def main() -> None:
    options = parser(__doc__, rounds=5).parse_args()
    files = [assets() / "loras" / adapter_file(RECIPES[name]) for name in BLEND]
    stack = lyc.Stack([lyc.Entry(lyc.load_adapter(file), 0.5) for file in files])
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        base, copy, out = (Path(folder) / name for name in ("base.safetensors", "copy", "out.safetensors"))
        write_base(base, channel_mult=(1, 2), num_res_blocks=1, dtype=torch.float16)
        weights = {key: weight.clone() for key, weight in load_file(base).items()}
        pairs = lyc.resolve(stack, {key: tuple(weight.shape) for key, weight in weights.items()}).pairs()

        def patch() -> None:
            for key, found in pairs.items():
                layers = [(entry.adapter.layer(match.layer), match.strength) for entry, match in found]
                lyc.patch_(weights[key], layers)

        works = {
            "copy": lambda: shutil.copyfile(base, copy),
            "patch": patch,
            "merge": lambda: lyc.merge_checkpoint(base, stack, out),
        }
        ms = middle(in_turn(works, options.rounds))
        print(f"{base.stat().st_size / 1e6:.0f} MB, {len(pairs)} weights merged, torch {torch.__version__}")
    table = Table("copy ms", "patch ms", "merge ms", "ratio")
    table.row(*(f"{took:.0f}" for took in ms.values()), f"{ms['merge'] / (ms['copy'] + ms['patch']):.2f}")


if __name__ == "__main__":
    main()
