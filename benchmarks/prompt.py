"""A change of strength in the real ComfyUI, from queueing the prompt to its result.

`python -m benchmarks.prompt [--rounds N]` makes a random checkpoint of SD1.5's full size and eight adapters
on its UNet and CLIP (3 LoRA, 3 LoHa, 2 LoKr), starts ComfyUI once, and runs one sampler step at 64x64 pixels.
It does so unpatched ("plain"), with a LycorisApplyStack ("ours") and with eight chained LoraLoaders
("theirs"): first once, then so many rounds with new strengths, as a user does who tries them out. It prints
the median seconds of these rounds, the ratio of theirs to ours, the server's peak memory, and how far the
latents of both differ, as a share of what the adapters change.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.cases import factors
from benchmarks.side import Resident, milliseconds, parser
from tests.harness.base import CLIP, UNET, checkpoint_layout, write_base
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Run, Server, base_directory
from tests.harness.prompts import Prompt, latent, node, sampled, stacked

MULT, BLOCKS = (1, 2, 4, 4), 2
"""Channel multipliers and residual blocks of SD1.5's UNet."""
KINDS = ("lora", "loha", "lokr", "lora", "loha", "lokr", "lora", "loha")
STRENGTHS = (0.8, 0.5, -0.4, 0.7, 0.3, 0.6, -0.2, 0.9)
CHECKPOINT = "full_size.safetensors"


def write_adapters(folder: Path) -> list[str]:
    """Write an adapter of each of KINDS for all layers of the UNet and of CLIP; the names of the files."""
    layers: dict[str, tuple[int, ...]] = {}
    for name, init in checkpoint_layout(channel_mult=MULT, num_res_blocks=BLOCKS, vae=False).items():
        # Linear layers and convolutions only: norms have one dimension.
        if name.endswith(".weight") and len(init.shape) > 1 and "embedding" not in name:
            path = name.removesuffix(".weight").replace(UNET, "lora_unet_")
            layers[path.replace(CLIP, "lora_te_text_model_").replace(".", "_")] = init.shape
    names: list[str] = []
    for number, kind in enumerate(KINDS):
        draw = torch.Generator().manual_seed(number)
        tensors = {
            f"{layer}.{key}": tensor.half()
            for layer, shape in layers.items()
            for key, tensor in factors(kind, shape, draw).items()
        }
        names.append(f"{number}_{kind}.safetensors")
        save_file(tensors, folder / names[-1])
    return names


def ours(names: list[str], factor: float) -> Prompt:
    """With all adapters in one stack, every strength times a factor."""
    pairs = zip(names, STRENGTHS, strict=True)
    prompt, stack = stacked((name, factor * strength, factor * strength) for name, strength in pairs)
    settings = {"mode": "merge", "strict": False}
    apply = node("LycorisApplyStack", model=["base", 0], clip=["base", 1], stack=stack, **settings)
    return {**prompt, "a": apply, **sampled(["a", 0], ["a", 1], "ours", checkpoint=CHECKPOINT)}


def theirs(names: list[str], factor: float) -> Prompt:
    """With a LoraLoader for each adapter, every strength times a factor."""
    before, prompt = "base", Prompt()
    for number, (name, strength) in enumerate(zip(names, STRENGTHS, strict=True)):
        strengths = {f"strength_{part}": factor * strength for part in ("model", "clip")}
        links = {"model": [before, 0], "clip": [before, 1]}
        before = f"l{number}"
        prompt[before] = node("LoraLoader", lora_name=name, **links, **strengths)
    return prompt | sampled([before, 0], [before, 1], "theirs", checkpoint=CHECKPOINT)


def plain(number: int) -> Prompt:
    """Unpatched, each time with another guidance, so that the host takes no result from its cache."""
    base = (["base", 0], ["base", 1], "plain")
    return sampled(*base, checkpoint=CHECKPOINT, cfg=4.0 + 0.01 * number)


def main() -> None:
    options = parser(__doc__, rounds=5).parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        base = base_directory(Path(folder), ROOT)
        checkpoint = base / "models" / "checkpoints" / CHECKPOINT
        write_base(checkpoint, channel_mult=MULT, num_res_blocks=BLOCKS, dtype=torch.float16)
        names = write_adapters(base / "models" / "loras")
        prompts = {
            "plain": plain,
            "ours": lambda number: ours(names, 1.0 - 0.01 * number),
            "theirs": lambda number: theirs(names, 1.0 - 0.01 * number),
        }
        times, memory, latents = dict[str, float](), dict[str, float](), dict[str, Tensor]()
        with Server(facts().comfyui, base) as server:

            def queue(prompt: Prompt) -> Run:
                run = server.queue(prompt)
                if run.error:
                    sys.exit(run.error.exception_message)
                return run

            # One after the other: a change of the model would count for whoever comes next.
            for name, prompt_of in prompts.items():
                # The first round loads files and compiles kernels: its time and memory do not count.
                latents[name] = latent(server, queue(prompt_of(0))).double()
                resident = Resident(server.pid)
                resident.forget()
                made = [prompt_of(number) for number in range(1, options.rounds + 1)]
                took = [milliseconds(partial(queue, prompt)) for prompt in made]
                times[name], memory[name] = statistics.median(took) / 1e3, resident.peak / 1e3
    effect = (latents["theirs"] - latents["plain"]).norm()
    for name, value in times.items():
        print(f"{name:7s} {value:6.2f} s, peak {memory[name]:.2f} GB")
    print(f"ratio {times['theirs'] / times['ours']:.2f}")
    print(f"latents differ by {(latents['ours'] - latents['theirs']).norm() / effect:.2e} of the effect")


if __name__ == "__main__":
    main()
