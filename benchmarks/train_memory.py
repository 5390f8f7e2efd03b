"""The peak memory of a training step relative to a forward pass, for narrow models of real depth.

`python -m benchmarks.train_memory` prints three peaks for each model and latent size, in MB beyond the
model itself: of a pass without gradients, of a step that keeps all activations, and of a step that recomputes
the blocks. Then it prints the last two, divided by the first and by the number of blocks. These are the
factors in `lycoris_nodes/training/node/memory.py`. Width and dtype scale all peaks alike; depth does not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.side import Table
from tests.harness.assets import install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process, loaded_pack

SD15: dict[str, Any] = {
    "model_channels": 64,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "num_head_channels": 32,
    "context_dim": 64,
}
FLUX: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 256,
    "num_heads": 2,
    "axes_dim": [16, 56, 56],
    "context_in_dim": 64,
    "depth": 19,
    "depth_single_blocks": 38,
}
CASES = {
    "SD1.5": (SD15, (4, 64, 64), (77, 64)),
    "SD1.5, 32 x 32": (SD15, (4, 32, 32), (77, 64)),
    "Flux 1": (FLUX, (16, 64, 64), (256, 64)),
    "Flux 1, 32 x 32": (FLUX, (16, 32, 32), (256, 64)),
}
"""By title: the settings that the model of the zoo gets, and the shapes of the latent and of the text."""


def peak(work: Callable[[], object]) -> int:
    """The most bytes that are held at once in addition to what was held before, on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    held = most = 0
    for event in found.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def measured(title: str, pack: str) -> tuple[int, int, int, int]:
    """The peaks of a pass, of a step that keeps all activations and of one that recomputes blocks; then the
    number of blocks."""
    from comfy.model_patcher import ModelPatcher

    from tests.harness import zoo

    session = importlib.import_module(f"{pack}.lycoris_nodes.training.model.session")
    settings, shape, text = CASES[title]
    cpu = torch.device("cpu")
    model = zoo.make(title.partition(",")[0], changed=settings, cut=False)
    more = {"y": torch.randn(1, 12), "guidance": torch.ones(1)} if "Flux" in title else {}
    conds = {"c_crossattn": torch.randn(1, *text), **more}
    x, sigma = torch.randn(1, *shape), torch.tensor([0.5])
    peaks: list[int] = []
    blocks = 0
    for checkpointing in (False, True):
        patcher = ModelPatcher(model, load_device=cpu, offload_device=cpu)
        with session.opened(patcher, checkpointing=checkpointing) as opened:
            blocks = opened.blocks

            def forward() -> torch.Tensor:
                return opened.prediction(x, sigma, conds).square().mean()

            if not checkpointing:
                with torch.no_grad():
                    peaks.append(peak(forward))
            opened.adapted(rank=16, preset="attn-mlp", seed=0).apply_to()
            peaks.append(peak(lambda: forward().backward()))
    first, kept, again = peaks
    return first, kept, again, blocks


def main() -> None:
    base = install(base_directory(ROOT / ".cache" / facts().host / "train-memory", ROOT))
    boot_in_process(facts().comfyui, base)
    table = Table(
        *("model", "blocks", "pass MB", "kept MB", "again MB", "kept / pass a block", "again / pass a block")
    )
    for title in CASES:
        first, kept, again, blocks = measured(title, loaded_pack(base).__name__)
        sizes = (f"{size / 1e6:.1f}" for size in (first, kept, again))
        table.row(title, blocks, *sizes, *(f"{size / first / blocks:.2f}" for size in (kept, again)))


if __name__ == "__main__":
    main()
