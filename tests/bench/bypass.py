"""Bypass of a linear layer: this pack's ("ours") and ComfyUI's own ("host"), side by side in one process.

`python -m tests.bench.bypass [--device cuda] [--rounds N]` prints a table. Each round runs the layer alone,
with our bypass and with the host's, in turn, on the same input. All times are medians over the rounds, in ms.
"ratio" is the time of a whole pass with ours over that with the host's: above 1, ours is slower. "beside" is
the time of a pass less that of the layer alone in the same round. An error is the norm of what the output is
off by, over the norm of the exact change; the rounding of the output is in it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

import lycoris_ops as lyc
from tests.bench.cases import DTYPES, EFFECT, Factors, balanced, loha, lokr, lora, rand
from tests.harness.facts import facts

SIZES = ((1280, 4096), (3072, 1024))
"""(Inputs and outputs of the layer, tokens), as in SDXL and in Flux."""


def lokr_full(shape: tuple[int, int], generator: torch.Generator) -> Factors:
    """LoKr of two full factors, without a rank and alpha."""
    (outer, k), (i, j) = balanced(shape[0]), balanced(shape[1])
    scale = EFFECT / shape[1] ** 0.5
    return {
        "lokr_w1": rand(outer, i, generator=generator) * scale,
        "lokr_w2": rand(k, j, generator=generator),
    }


def cases(size: int) -> dict[str, tuple[str, Factors]]:
    """(algorithm, tensors) of each measured adapter by its title, for a weight (size, size)."""
    shape, generator = (size, size), torch.Generator().manual_seed(size)
    return {
        "LoRA r16": ("lora", {**lora(shape, 16, generator), "alpha": torch.tensor(16.0)}),
        "LoHa r8": ("loha", {**loha(shape, 8, generator), "alpha": torch.tensor(8.0)}),
        "LoKr full": ("lokr", lokr_full(shape, generator)),
        "LoKr r16": ("lokr", {**lokr(shape, 16, generator), "alpha": torch.tensor(16.0)}),
    }


def ours(module: nn.Module, kind: str, tensors: Factors) -> Any:
    """This pack's bypass of an adapter at strength 0.8 on a module, not yet attached."""
    geometry = lyc.geometry_of(module)
    assert not isinstance(geometry, str)
    plan = lyc.BypassPlan.build(geometry, [(lyc.ALGORITHMS[kind].load(tensors), 0.8)])
    return lyc.Bypass(module, plan)


def theirs(module: nn.Module, kind: str, tensors: Factors) -> Any:
    """The host's own bypass of the same adapter, not yet injected."""
    from comfy.weight_adapter import adapters
    from comfy.weight_adapter.bypass import BypassForwardHook

    loaders = {adapter.name: adapter for adapter in adapters}
    named = {f"x.{key}": tensor for key, tensor in tensors.items()}
    alpha = tensors["alpha"].item() if "alpha" in tensors else None
    adapter = loaders[kind].load("x", named, alpha, None, set())
    return BypassForwardHook(module, adapter, multiplier=0.8)


def clock(device: str) -> float:
    # A call on a GPU returns before the work is done.
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def layer(weight: Tensor) -> nn.Linear:
    # On the meta device, so that no weight is made and initialised only to be replaced.
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


def measure(size: int, tokens: int, dtype: torch.dtype, device: str, rounds: int) -> None:
    """Measure every case on a weight (size, size) and print a row of the table for each."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(size, size, generator=generator) / size**0.5).to(device, dtype)
    x = torch.randn(1, tokens, size, generator=generator).to(device, dtype)
    exact = x.double() @ weight.double().T
    for name, (kind, tensors) in cases(size).items():
        change = 0.8 * (
            x.double() @ lyc.ALGORITHMS[kind].load(tensors).delta(weight.cpu().double()).T.to(device)
        )
        modules = {"layer": layer(weight), "ours": layer(weight), "host": layer(weight)}
        ours(modules["ours"], kind, tensors).attach()
        theirs(modules["host"], kind, tensors).inject()
        times: dict[str, list[float]] = {who: [] for who in modules}
        errors: dict[str, float] = {}
        # The first two rounds warm up: they give the errors, and their times do not count.
        for number in range(rounds + 2):
            for who, module in modules.items():
                start = clock(device)
                y = module(x)
                if number >= 2:
                    times[who].append(1e3 * (clock(device) - start))
                elif who != "layer":
                    errors[who] = float((y.double() - exact - change).norm() / change.norm())
        middle = {who: statistics.median(found) for who, found in times.items()}
        beside = {
            who: statistics.median(a - b for a, b in zip(times[who], times["layer"], strict=True))
            for who in ("ours", "host")
        }
        print(
            f"| {name} | {size} x {tokens} | {str(dtype).removeprefix('torch.')} | {middle['layer']:.1f} | "
            f"{middle['ours']:.1f} | {middle['host']:.1f} | {middle['ours'] / middle['host']:.2f} | "
            f"{beside['ours']:.1f} | {beside['host']:.1f} | {errors['ours']:.1e} | {errors['host']:.1e} |",
            flush=True,
        )


def boot(device: str) -> None:
    """Make the host importable, without its reading this program's command line."""
    sys.path.insert(0, str(facts().comfyui))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = device == "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    boot(options.device)
    titles = ("case", "layer x tokens", "dtype", "layer alone ms", "ours", "host", "ratio", "ours beside")
    titles += ("host beside", "error, ours", "host")
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    with torch.inference_mode():
        for dtype in ("fp32", "bf16"):
            for size, tokens in SIZES:
                measure(size, tokens, DTYPES[dtype], options.device, options.rounds)
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, ComfyUI {facts().host}")


if __name__ == "__main__":
    main()
