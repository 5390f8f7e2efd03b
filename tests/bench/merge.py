"""Merging three adapters for SDXL, side by side with PEFT's `add_weighted_adapter`.

`python -m tests.bench.merge [--whole] [--rounds N]` takes the linear layers of one of the 70 transformer
blocks of SDXL's UNet, or of all with `--whole`, where PEFT and TIES are left out. It merges:

- a LoRA of rank 16, a LoKr and a LoHa of rank 8, by the exact sum and by TIES to rank 48;
- three LoRAs of rank 16 by the same two. PEFT's `cat` is the exact sum and its `ties_svd` is TIES with a
  full decomposition. With `--whole` also by TSV-M.

Rounds are interleaved, in one process. The ratio is the median of PEFT's times over ours. With `--whole` each
has the seconds of the processor too, in which other work on the machine has no part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import lycoris_ops as lyc
from tests.bench.cases import factors
from tests.bench.side import in_turn, middle, parser, ratio

RANK, STRENGTHS = 48, (0.8, 0.5, -0.4)
CONTEXT = 2048
BLOCKS = {640: 10, 1280: 60}
"""How many transformer blocks of each width SDXL has."""

Layers = dict[str, tuple[int, int]]
Pairs = list[tuple[lyc.Adapter, float]]


def shapes(count: dict[int, int]) -> Layers:
    """The linear layers of transformer blocks of each width, by name."""
    found: Layers = {}
    for width, blocks in count.items():
        for number in range(blocks):
            name = f"width_{width}_{number}"
            for attention, given in (("attn1", width), ("attn2", CONTEXT)):
                for part, inputs in (("q", width), ("k", given), ("v", given), ("out", width)):
                    found[f"{name}_{attention}_{part}"] = (width, inputs)
            found[f"{name}_ff_in"] = (8 * width, width)
            found[f"{name}_ff_out"] = (width, 4 * width)
    return found


def adapters(kinds: tuple[str, ...], layers: Layers) -> Pairs:
    found: Pairs = []
    for number, (kind, strength) in enumerate(zip(kinds, STRENGTHS, strict=True)):
        draw, load = torch.Generator().manual_seed(number), lyc.ALGORITHMS[kind].load
        made = {f"lora_unet_{name}": load(factors(kind, shape, draw)) for name, shape in layers.items()}
        found.append((lyc.Adapter.of(made, name=f"{kind} {number}"), strength))
    return found


def by_peft(pairs: Pairs, layers: Layers) -> Any:
    """A model of PEFT's with the same LoRAs."""
    from peft import LoraConfig, get_peft_model

    module = nn.ModuleDict({name: nn.Linear(i, o, bias=False) for name, (o, i) in layers.items()})
    config = LoraConfig(r=16, lora_alpha=16, target_modules=list(layers))
    model: Any = get_peft_model(module, config, "0")  # type: ignore[arg-type]
    for name in ("1", "2"):
        model.add_adapter(name, config)
    with torch.no_grad():
        for number, (adapter, _) in enumerate(pairs):
            for name, layer in adapter.layers.items():
                target = model.base_model.get_submodule(f"model.{name.removeprefix('lora_unet_')}")
                held = layer.tensors()
                target.lora_A[str(number)].weight.copy_(held["lora_down"])
                target.lora_B[str(number)].weight.copy_(held["lora_up"])
    return model


def joined(model: Any, how: str, **options: Any) -> None:
    model.add_weighted_adapter(["0", "1", "2"], list(STRENGTHS), "merged", how, **options)
    model.delete_adapter("merged")


def main() -> None:
    made = parser(__doc__, rounds=3)
    made.add_argument("--whole", action="store_true")
    options = made.parse_args()
    layers = shapes(BLOCKS if options.whole else {640: 1})
    mixed, same = adapters(("lora", "lokr", "loha"), layers), adapters(("lora",) * 3, layers)
    size = lyc.Rank(RANK)
    works: dict[str, Callable[[], object]] = {"LoRA, sum": partial(lyc.merge_adapters, same)}
    if options.whole:
        works["LoRA, TSV"] = partial(lyc.merge_adapters, same, "tsv")
    else:
        model = by_peft(same, layers)
        works |= {
            "mixed, TIES": partial(lyc.merge_adapters, mixed, "ties", size),
            "LoRA, sum by PEFT": partial(joined, model, "cat"),
            "LoRA, TIES": partial(lyc.merge_adapters, same, "ties", size),
            "LoRA, TIES by PEFT": partial(joined, model, "ties_svd", svd_rank=RANK, density=0.2),
        }
    works["mixed, sum"] = partial(lyc.merge_adapters, mixed)

    def told(name: str, work: Callable[[], object]) -> None:
        used = time.process_time()
        work()
        print(f"{name:20} {time.process_time() - used:8.1f} s of the processor", flush=True)

    if options.whole:
        works = {name: partial(told, name, work) for name, work in works.items()}
    times = in_turn(works, options.rounds, warm=0)
    numbers = sum(o * i for o, i in layers.values())
    print(f"{len(layers)} layers, {numbers / 1e6:.0f} M values, {options.rounds} rounds")
    for name, took in middle(times).items():
        line = f"{name:20} median {took / 1e3:8.3f} s, least {min(times[name]) / 1e3:8.3f} s"
        if f"{name} by PEFT" in times:
            line += f";  PEFT {ratio(times, f'{name} by PEFT', name):.1f} times as long"
        print(line, flush=True)


if __name__ == "__main__":
    main()
