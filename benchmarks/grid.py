"""A grid of 3 x 3 strengths in one run: what it costs, and how close it comes to nine runs.

`python -m benchmarks.grid [--rounds N] [--kinds KIND ...]` takes a UNet of SD1.5's layout and a transformer
of Flux's, with random weights and two adapters of one kind. Strength Grid gives each of nine pictures a
strength of one adapter and one of the other. Passes of a batch of nine take turns: without adapters, with
both adapters unmasked by bypass, and with the grid. It prints the median times, and two ratios: the grid's
time over that with the bypass, and the grid's time less the bypass's share, over the time without adapters.
The share is the time with the bypass less the time without adapters. Then it samples the grid, and each
picture in a run of its own. It prints the largest difference as a part of the adapters' largest effect.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.passes import OF_KINDS, TRANSFORMER, UNET, Small, run
from benchmarks.side import Table, in_turn, middle, parser, ratio, versions
from tests.harness.assets import install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process, loaded_pack

ACROSS, DOWN = (0.0, 0.3, 0.6), (0.0, 0.5, 1.0)
STEPS = 2
SMALLS = (
    replace(UNET, latent=(4, 16, 16)),
    replace(TRANSFORMER, latent=(4, 16, 16), conds={**TRANSFORMER.conds, "c_crossattn": (32, 512)}),
)
"""Their latents are small, because each pass has nine pictures."""


def text(small: Small) -> Any:
    """What a pass is given beside the latent, as the conditioning of a CLIP."""
    pooled = {"pooled_output": small.given["y"]} if "y" in small.given else {}
    return [[small.given["c_crossattn"], pooled]]


def sampled(nodes: Any, small: Small, patcher: Any, latents: Any) -> Tensor:
    with torch.inference_mode():
        (found,) = run(
            *(nodes, "KSampler", patcher, 0, STEPS, 1.0, "euler", "simple"),
            *(text(small), text(small), latents, 1.0),
        )
    return found["samples"].clone()


def main() -> None:
    asked = parser(__doc__, rounds=7)
    asked.add_argument("--kinds", nargs="+", default=("lora",), choices=OF_KINDS)
    options = asked.parse_args()
    base = install(base_directory(ROOT / ".cache" / facts().host / "bench-grid", ROOT))
    nodes = boot_in_process(facts().comfyui, base)
    ops: Any = loaded_pack(base).lycoris_ops
    table = Table(
        *("model", "kind", "alone ms", "bypass ms", "grid ms", "grid to bypass"),
        *("grid less bypass's share, to alone", "difference to runs of their own"),
    )
    for small in SMALLS:
        latent = {"samples": torch.randn(1, *small.latent)}
        for kind in options.kinds:
            both = small.stack(ops, kind) + small.stack(ops, kind, seed=1)

            def bypassed(stack: Any, small: Small = small) -> Any:
                return run(nodes, "LycorisApplyStack", small.plain, stack, mode="bypass")[0]

            values, other = (", ".join(map(str, axis)) for axis in (ACROSS, DOWN))
            stack, latents, _ = run(
                *(nodes, "LycorisStrengthGrid", latent, both, values, 1, "strength", other, "2"),
            )
            patchers = {"alone": small.plain, "bypass": bypassed(both), "grid": bypassed(stack)}
            x: Tensor = latents["samples"]

            def loaded(name: str, small: Small = small, x: Tensor = x, held: Any = patchers) -> None:
                small.loaded(held[name], x)

            times = in_turn(
                {name: partial(small.passed, one, x) for name, one in patchers.items()},
                options.rounds,
                before=loaded,
            )
            alone, bypass, grid = (times[name] for name in ("alone", "bypass", "grid"))
            rest = median((c - (b - a)) / a for a, b, c in zip(alone, bypass, grid, strict=True))
            first, second = both
            plain = sampled(nodes, small, small.plain, latent)
            found = sampled(nodes, small, patchers["grid"], latents)
            off = effect = 0.0
            for number, picture in enumerate(found):
                down, across = divmod(number, len(ACROSS))
                pair = (replace(first, strength=ACROSS[across]), replace(second, strength=DOWN[down]))
                wanted = sampled(nodes, small, bypassed(ops.Stack(pair)), latent)
                off = max(off, float((picture - wanted[0]).abs().max()))
                effect = max(effect, float((wanted - plain).abs().max()))
            took = middle(times)
            table.row(
                *(small.title, kind, *(f"{took[name]:.0f}" for name in patchers)),
                *(f"{ratio(times, 'grid', 'bypass'):.3f}", f"{rest:.3f}", f"{off / effect:.1e}"),
            )
    print(f"\n{versions()}")


if __name__ == "__main__":
    main()
