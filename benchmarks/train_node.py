"""A whole training by this pack's node beside ComfyUI's own, in one process.

`python -m benchmarks.train_node [--steps N] [--rounds N] [--cases TEXT]` prints a table. Both nodes train
the same model, loaded by ComfyUI from a file of random weights: LoRAs of one rank on every linear layer and
every convolution, and the changes of all norms and biases, which ComfyUI's node always adds. Batch, dtype,
optimiser and recomputation are the same too. ComfyUI's node runs in both of its modes, by changed weights and
by bypass.

"s a step" is the least over the steps of all rounds without the first of each, in which memory is laid out.
"peak MB" is by how much the process's resident memory grew above what it was with the model loaded, at most.
A ratio is ours divided by that of a mode of ComfyUI's: below 1, ours is better. "Model alone" trains one
layer at the model's start, so that gradients pass through all of it: no trainer can take less. With a batch
of B captions ComfyUI's node computes each of B latents with each of B captions, and averages over them.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.cases import DTYPES
from benchmarks.side import Resident, Table, parser, versions
from tests.harness.diffusion import write_model
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process
from tests.harness.prompts import grouped

RANK, LATENTS = 8, 4
"""The rank of all layers, and how many latents are trained on."""


@dataclass(frozen=True)
class Case:
    title: str
    layout: str
    sizes: dict[str, Any]
    latent: tuple[int, ...]
    batch: int = 1
    checkpointing: bool = False
    dtype: str = "fp32"
    first: str = "input_blocks.0.0"
    """A layer at the start of the model."""


SMALL, MIDDLE = {"channel_mult": (1,), "num_res_blocks": 1}, {"channel_mult": (1, 2), "num_res_blocks": 1}
FLUX, WAN = {"width": 640, "double": 2, "single": 2}, {"width": 768, "blocks": 4}
CASES = (
    Case("SD1.5 layout, 26 M", "SD1.5", SMALL, (4, 32, 32)),
    Case("SD1.5 layout, 26 M", "SD1.5", SMALL, (4, 32, 32), 2),
    Case("SD1.5 layout, 26 M", "SD1.5", SMALL, (4, 32, 32), 1, True),
    Case("SD1.5 layout, 107 M", "SD1.5", MIDDLE, (4, 16, 16)),
    Case("SD1.5 layout, 107 M", "SD1.5", MIDDLE, (4, 16, 16), 1, False, "bf16"),
    Case("Wan layout, 38 M", "Wan", WAN, (16, 1, 32, 32), first="patch_embedding"),
    Case("Flux layout, 42 M", "Flux", FLUX, (16, 32, 32), first="img_in"),
    Case("Flux layout, 42 M", "Flux", FLUX, (16, 32, 32), 1, True, first="img_in"),
)


@dataclass
class Measured:
    steps: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    error: str = ""

    def __str__(self) -> str:
        return self.error or f"{min(self.steps):.3f}, {statistics.median(self.peaks):.0f}"

    def over(self, other: Measured) -> tuple[str, str]:
        """The ratios of the times and of the peaks."""
        if other.error:
            return "-", "-"
        peaks = (statistics.median(one.peaks) for one in (self, other))
        return f"{min(self.steps) / min(other.steps):.2f}", f"{next(peaks) / next(peaks):.2f}"


def caption(number: int) -> list[Any]:
    """A conditioning as CLIP-L gives it."""
    draw = torch.Generator().manual_seed(number)
    pooled = torch.randn((1, 768), generator=draw)
    return [[torch.randn((1, 77, 768), generator=draw), {"pooled_output": pooled}]]


def data(case: Case) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    samples = torch.randn((LATENTS, *case.latent), generator=draw)
    return {"latents": [{"samples": samples}], "positive": [caption(number) for number in range(LATENTS)]}


def defaults(node: Any) -> dict[str, Any]:
    """The settings of a node that its schema has a value for."""
    inputs = [one for one in node.GET_SCHEMA().inputs if getattr(one, "default", None) is not None]
    return {one.id: one.default for one in inputs}


def run(node: Any, given: dict[str, Any]) -> Any:
    """Run a node as the host does where it takes lists; what it gives."""
    many = ("latents", "positive", "less", "more")
    lists = {name: value if name in many else [value] for name, value in given.items()}
    with torch.inference_mode():
        return node.execute(**grouped(node, lists))


def ours(nodes: Any, model: Any, case: Case, steps: int, *, alone: bool = False) -> None:
    node = nodes.NODE_CLASS_MAPPINGS["LycorisTrain"]
    settings: dict[str, Any] = {
        "steps": steps,
        "learning_rate": 1e-4,
        "rank": RANK,
        "batch_size": case.batch,
        # Norms too, and the bias of every module.
        "include": case.first if alone else "*",
        "overrides": "" if alone else "*: bias true",
        "warmup": 0.0,
        "checkpointing": "on" if case.checkpointing else "off",
        "filename_prefix": "bench/ours",
    }
    run(node, {**defaults(node), **settings, "model": model, **data(case)})


def theirs(nodes: Any, model: Any, case: Case, steps: int, *, bypass: bool) -> None:
    node = nodes.NODE_CLASS_MAPPINGS["TrainLoraNode"]
    settings: dict[str, Any] = {
        "steps": steps,
        "grad_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "rank": RANK,
        "batch_size": case.batch,
        "algorithm": "LoRA",
        "training_dtype": case.dtype,
        "lora_dtype": "fp32",
        "gradient_checkpointing": case.checkpointing,
        "checkpoint_depth": 2,
        "existing_lora": "[None]",
        "bypass_mode": bypass,
    }
    run(node, {**defaults(node), **settings, "model": model, **data(case)})


Train = Callable[[Any, Any, Case, int], None]
TRAINERS: dict[str, Train] = {
    "ours": ours,
    "ComfyUI weight": lambda *given: theirs(*given, bypass=False),
    "ComfyUI bypass": lambda *given: theirs(*given, bypass=True),
    "model alone": lambda *given: ours(*given, alone=True),
}
MODES = ("ComfyUI weight", "ComfyUI bypass")


def measure(nodes: Any, model: Any, case: Case, train: Train, steps: int, into: Measured) -> None:
    import comfy.model_management
    import comfy.utils

    ends: list[float] = []
    before = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(lambda *_, **__: ends.append(time.perf_counter()))
    comfy.model_management.load_models_gpu([model])
    resident = Resident()
    resident.forget()
    start = resident.now
    try:
        train(nodes, model, case, steps)
    except Exception as error:
        if train is ours:
            raise
        into.error = f"{type(error).__name__}: {error}".splitlines()[0]
        return
    finally:
        comfy.utils.set_progress_bar_global_hook(before)
    into.peaks.append(resident.peak - start)
    into.steps += [after - one for one, after in itertools.pairwise(ends)]


def main() -> None:
    made = parser(__doc__, rounds=3)
    made.add_argument("--steps", type=int, default=5)
    made.add_argument("--cases", default="", help="measure only rows whose title has this text")
    options = made.parse_args()
    if options.steps < 2:
        made.error("the first step of a round does not count: take at least 2 --steps")
    base = base_directory(ROOT / ".cache" / "bench" / "train-node", ROOT)
    nodes = boot_in_process(facts().comfyui, base)
    titles = ["model", "latent", "batch", "recomputed", "dtype"]
    titles += [f"{name}: s a step, peak MB" for name in TRAINERS]
    table = Table(*titles, *(f"ratio of {which} to {name}" for name in MODES for which in ("times", "peaks")))
    for case in CASES:
        recomputed = "yes" if case.checkpointing else "no"
        words = (case.title, list(case.latent), case.batch, recomputed, case.dtype)
        if options.cases not in " ".join(map(str, words)):
            continue
        path = base / "models" / "diffusion_models" / "bench.safetensors"
        write_model(path, case.layout, **case.sizes)
        model = nodes.UNETLoader().load_unet(path.name, "default")[0]
        if case.dtype != "fp32":
            model = model.clone()
            model.set_model_compute_dtype(DTYPES[case.dtype])
        found = {name: Measured() for name in TRAINERS}
        for _ in range(options.rounds):
            for name, train in TRAINERS.items():
                if not found[name].error:
                    measure(nodes, model, case, train, options.steps, found[name])
        shares = (share for name in MODES for share in found["ours"].over(found[name]))
        table.row(*words, *map(str, found.values()), *shares)
    print(f"\n{versions()}")


if __name__ == "__main__":
    main()
