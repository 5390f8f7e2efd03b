"""What a schedule costs in the real ComfyUI: a run under a constant one beside a plain bypass.

`python -m tests.bench.schedule [ROUNDS]` takes the test model of SD1.5's layout with a stack of a LoRA, a
LoKr and a LoHa, and samples four steps in each mode, in turns. It prints the median seconds, and the median
of the ratios of the rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch

from tests.harness.adapters import RECIPES
from tests.harness.assets import adapter_file, install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process

ADAPTERS, STEPS, SIZE = ("lora", "lokr", "loha"), 4, 64


def main(rounds: int) -> None:
    base = install(base_directory(ROOT / ".cache" / facts().host / "bench-schedule", ROOT))
    nodes = boot_in_process(facts().comfyui, base)

    def run(node: str, *given: Any, **options: Any) -> Any:
        return nodes.NODE_CLASS_MAPPINGS[node].execute(*given, **options).args

    model, clip, *_ = nodes.CheckpointLoaderSimple().load_checkpoint("base.safetensors")
    stack = None
    for name in ADAPTERS:
        (stack,) = run("LycorisLoadAdapter", adapter_file(RECIPES[name]), 0.5, 0.0, stack)
    (constant,) = run("LycorisSchedule", stack, "constant 1")
    models = {
        name: run("LycorisApplyStack", model, used, mode="bypass", strict=True)[0]
        for name, used in (("bypass", stack), ("constant schedule", constant))
    }
    (words,) = nodes.CLIPTextEncode().encode(clip, "a cat")
    (latent,) = nodes.EmptyLatentImage().generate(SIZE, SIZE)

    def sampled(on: Any, steps: int = STEPS) -> tuple[float, torch.Tensor]:
        start = time.perf_counter()
        (found,) = nodes.KSampler().sample(on, 7, steps, 1.0, "euler", "normal", words, words, latent)
        return time.perf_counter() - start, found["samples"]

    # The first run of each loads the model, which is no part of the sampling.
    first = {name: sampled(on)[1] for name, on in models.items()}
    one, other = first.values()
    print(f"latents differ by {float((one - other).norm() / one.norm()):.1e}")
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds):
        for name in list(models) if number % 2 else reversed(list(models)):
            # The other one's hooks are on the model: they are changed beforehand.
            sampled(models[name], 1)
            times[name].append(sampled(models[name])[0])
    for name, found in times.items():
        print(f"{name:18} median {statistics.median(found):.3f} s, least {min(found):.3f} s")
    ratio = statistics.median(two / one for one, two in zip(*times.values(), strict=True))
    least = [min(found) for found in times.values()]
    print(f"median ratio {ratio:.3f}, ratio of the least times {least[1] / least[0]:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
