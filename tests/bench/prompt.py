"""A change of strength in the real ComfyUI, from queueing the prompt to its result.

`python -m tests.bench.prompt [ROUNDS]` makes a random checkpoint of SD1.5's full size and eight adapters on
its UNet and CLIP (3 LoRA, 3 LoHa, 2 LoKr), starts ComfyUI once, and runs one sampler step at 64x64 pixels. It
does so unpatched ("plain"), with a LycorisApplyStack ("ours") and with eight chained LoraLoaders ("theirs"):
first once, then ROUNDS times with new strengths, as a user does who tries them out. It prints the median
seconds of these rounds, the ratio of theirs to ours, the server's peak memory, and how far the latents of
both differ, as a share of what the adapters change.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.bench.cases import EFFECT, balanced
from tests.harness.base import CLIP, UNET, checkpoint_layout, write_base
from tests.harness.facts import ROOT, facts
from tests.harness.launch import Server, base_directory

MULT, BLOCKS = (1, 2, 4, 4), 2
"""Channel multipliers and residual blocks of SD1.5's UNet."""
KINDS = ("lora", "loha", "lokr", "lora", "loha", "lokr", "lora", "loha")
STRENGTHS = (0.8, 0.5, -0.4, 0.7, 0.3, 0.6, -0.2, 0.9)
CHECKPOINT = "full_size.safetensors"


def factors(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    """Random tensors of an adapter layer by suffix, without an alpha; EFFECT is the norm of their change."""

    def rand(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    out, flat, ones = shape[0], math.prod(shape[1:]), [1 for _ in shape[2:]]
    size = EFFECT / math.sqrt(flat)
    if kind == "lora":
        return {"lora_up.weight": rand(out, 16, *ones) * size / 4, "lora_down.weight": rand(16, *shape[1:])}
    if kind == "loha":
        made = {f"hada_w{n}_a": rand(out, 8) for n in (1, 2)} | {
            f"hada_w{n}_b": rand(8, flat) for n in (1, 2)
        }
        made["hada_w1_a"] *= size / 8
        return made
    (outer, k), (i, j) = balanced(out), balanced(shape[1])
    return {
        "lokr_w1": rand(outer, i) * size / 4,
        "lokr_w2_a": rand(k, 16),
        "lokr_w2_b": rand(16, j * math.prod(shape[2:])),
    }


def write_adapters(folder: Path) -> list[str]:
    """Write an adapter of each of KINDS for all layers of the UNet and of CLIP; the names of the files."""
    layout = checkpoint_layout(channel_mult=MULT, num_res_blocks=BLOCKS, vae=False)
    layers: dict[str, tuple[int, ...]] = {}
    for name, init in layout.items():
        # Linear layers and convolutions only: norms have one dimension.
        if not name.endswith(".weight") or len(init.shape) < 2 or "embedding" in name:
            continue
        path = name.removesuffix(".weight")
        if path.startswith(UNET):
            layers["lora_unet_" + path.removeprefix(UNET).replace(".", "_")] = init.shape
        elif path.startswith(CLIP):
            layers["lora_te_text_model_" + path.removeprefix(CLIP).replace(".", "_")] = init.shape
    names: list[str] = []
    for number, kind in enumerate(KINDS):
        generator = torch.Generator().manual_seed(number)
        tensors = {
            f"{layer}.{key}": tensor.half()
            for layer, shape in layers.items()
            for key, tensor in factors(kind, shape, generator).items()
        }
        names.append(f"{number}_{kind}.safetensors")
        save_file(tensors, folder / names[-1])
    return names


Prompt = dict[str, Any]


def sampled(model: list[Any], clip: list[Any], prefix: str) -> Prompt:
    """A prompt of one sampler step; `model` and `clip` are the outputs to sample with."""
    return {
        "p": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": "a cat on a mat"}},
        "n": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}},
        "e": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "k": {
            "class_type": "KSampler",
            "inputs": {
                "model": model,
                "positive": ["p", 0],
                "negative": ["n", 0],
                "latent_image": ["e", 0],
                "seed": 7,
                "steps": 1,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "s": {"class_type": "SaveLatent", "inputs": {"samples": ["k", 0], "filename_prefix": prefix}},
        "c": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
    }


def ours(names: list[str], factor: float) -> Prompt:
    """With all adapters in one stack, every strength times a factor."""
    prompt = sampled(["a", 0], ["a", 1], "ours")
    for number, (name, strength) in enumerate(zip(names, STRENGTHS, strict=True)):
        inputs: Prompt = {
            "file": name,
            "strength_model": factor * strength,
            "strength_clip": factor * strength,
        }
        if number:
            inputs["stack"] = [f"l{number - 1}", 0]
        prompt[f"l{number}"] = {"class_type": "LycorisLoadAdapter", "inputs": inputs}
    inputs = {"model": ["c", 0], "clip": ["c", 1], "stack": [f"l{len(names) - 1}", 0]}
    inputs |= {"mode": "merge", "strict": True}
    return prompt | {"a": {"class_type": "LycorisApplyStack", "inputs": inputs}}


def theirs(names: list[str], factor: float) -> Prompt:
    """With a LoraLoader for each adapter, every strength times a factor."""
    prompt = sampled([f"l{len(names) - 1}", 0], [f"l{len(names) - 1}", 1], "theirs")
    for number, (name, strength) in enumerate(zip(names, STRENGTHS, strict=True)):
        before = f"l{number - 1}" if number else "c"
        inputs = {"model": [before, 0], "clip": [before, 1], "lora_name": name}
        inputs |= {"strength_model": factor * strength, "strength_clip": factor * strength}
        prompt[f"l{number}"] = {"class_type": "LoraLoader", "inputs": inputs}
    return prompt


def plain(number: int) -> Prompt:
    """Unpatched, each time with another guidance, so that the host takes no result from its cache."""
    prompt = sampled(["c", 0], ["c", 1], "plain")
    prompt["k"]["inputs"]["cfg"] = 4.0 + 0.01 * number
    return prompt


def peak(server: Server) -> float:
    """The server's peak resident memory since the last `forget`, in GB."""
    lines = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6


def forget(server: Server) -> None:
    """Reset the server's peak of resident memory."""
    Path(f"/proc/{server.pid}/clear_refs").write_text("5", encoding="ascii")


def latent(base: Path, prefix: str) -> Tensor:
    """The first latent saved under a prefix: unpatched, or at the strengths of STRENGTHS."""
    return load_file(min((base / "output").glob(f"{prefix}_*.latent")))["latent_tensor"]


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        base = base_directory(Path(folder), ROOT)
        for part in ("checkpoints", "loras"):
            (base / "models" / part).mkdir(parents=True, exist_ok=True)
        write_base(
            base / "models" / "checkpoints" / CHECKPOINT,
            channel_mult=MULT,
            num_res_blocks=BLOCKS,
            dtype=torch.float16,
        )
        names = write_adapters(base / "models" / "loras")
        seconds: dict[str, list[float]] = {}
        memory: dict[str, float] = {}
        with Server(facts().comfyui, base) as server:
            for name, prompt_of in (
                ("plain", plain),
                ("ours", lambda number: ours(names, 1.0 - 0.01 * number)),
                ("theirs", lambda number: theirs(names, 1.0 - 0.01 * number)),
            ):
                for number in range(rounds + 1):
                    # The first round loads files and compiles kernels: its time and memory do not count.
                    if number == 1:
                        forget(server)
                    start = time.perf_counter()
                    run = server.queue(prompt_of(number))
                    if run.error:
                        sys.exit(f"{name}: {run.error.exception_message}")
                    if number:
                        seconds.setdefault(name, []).append(time.perf_counter() - start)
                memory[name] = peak(server)
        found = {name: latent(base, name).double() for name in ("plain", "ours", "theirs")}
    effect = (found["theirs"] - found["plain"]).norm()
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in middle.items():
        print(f"{name:7s} {value:6.2f} s, peak {memory[name]:.2f} GB")
    print(f"ratio {middle['theirs'] / middle['ours']:.2f}")
    print(f"latents differ by {(found['ours'] - found['theirs']).norm() / effect:.2e} of the effect")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
