"""What a schedule costs in the real ComfyUI: a run under a constant one beside a plain bypass.

`python -m tests.bench.schedule [--rounds N]` takes the test model of SD1.5's layout with a stack of a LoRA, a
LoKr and a LoHa, and samples four steps in each mode, in turns. It prints the median seconds, and the median
of the ratios of the rounds.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tests.bench.side import in_turn, middle, parser, ratio
from tests.harness.adapters import RECIPES
from tests.harness.assets import adapter_file, install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process

ADAPTERS, STEPS, SIZE = ("lora", "lokr", "loha"), 4, 64


def main() -> None:
    options = parser(__doc__, rounds=7).parse_args()
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

    def sampled(name: str, steps: int = STEPS) -> torch.Tensor:
        sample = nodes.KSampler().sample
        return sample(models[name], 7, steps, 1.0, "euler", "normal", words, words, latent)[0]["samples"]

    # The first run of each loads the model, which is no part of the sampling.
    one, other = (sampled(name) for name in models)
    print(f"latents differ by {float((one - other).norm() / one.norm()):.1e}")
    # The other one's hooks are on the model: they are changed beforehand.
    works = {name: partial(sampled, name) for name in models}
    times = in_turn(works, options.rounds, warm=0, before=partial(sampled, steps=1))
    for name, took in middle(times).items():
        print(f"{name:18} median {took / 1e3:.3f} s, least {min(times[name]) / 1e3:.3f} s")
    print(f"median ratio {ratio(times, 'constant schedule', 'bypass'):.3f}")


if __name__ == "__main__":
    main()
