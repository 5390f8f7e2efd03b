"""What a mask costs: a pass of a model with a masked stack beside one with the same stack unmasked.

`python -m benchmarks.mask [--rounds N] [--kinds KIND ...]` takes a UNet of SD1.5's layout and a transformer
of Flux's, with random weights and an adapter that has a layer of one kind for each of theirs. Passes take
turns in one process. It prints the median of the ratios of the times, and the ratio of the most memory that
a pass takes beyond the model.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.passes import OF_KINDS, TRANSFORMER, UNET, Small, run
from benchmarks.side import Resident, Table, in_turn, middle, parser, ratio, versions
from tests.harness.assets import install
from tests.harness.facts import ROOT, facts
from tests.harness.launch import base_directory, boot_in_process, loaded_pack


def main() -> None:
    asked = parser(__doc__, rounds=7)
    asked.add_argument("--kinds", nargs="+", default=OF_KINDS, choices=OF_KINDS)
    options = asked.parse_args()
    base = install(base_directory(ROOT / ".cache" / facts().host / "bench-mask", ROOT))
    nodes = boot_in_process(facts().comfyui, base)
    ops: Any = loaded_pack(base).lycoris_ops
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    table = Table("model", "kind", "unmasked ms", "masked ms", "ratio", "memory, masked to unmasked")
    for small in (UNET, TRANSFORMER):
        x = torch.randn(1, *small.latent)
        for kind in options.kinds:
            stack = small.stack(ops, kind)
            (masked,) = run(nodes, "LycorisMask", stack, half, text="whole")[:1]
            patchers = {
                "unmasked": run(nodes, "LycorisApplyStack", small.plain, stack, mode="bypass")[0],
                "masked": run(nodes, "LycorisApplyStack", small.plain, masked)[0],
            }

            def loaded(name: str, small: Small = small, x: torch.Tensor = x, held: Any = patchers) -> None:
                small.loaded(held[name], x)

            works = {name: partial(small.passed, one, x) for name, one in patchers.items()}
            times = in_turn(works, options.rounds, before=loaded)
            memory, peaks = Resident(), dict[str, float]()
            for name in patchers:
                loaded(name)
                memory.forget()
                start = memory.now
                works[name]()
                peaks[name] = memory.peak - start
            took = middle(times)
            table.row(
                *(small.title, kind, f"{took['unmasked']:.0f}", f"{took['masked']:.0f}"),
                *(f"{ratio(times, 'masked', 'unmasked'):.3f}", f"{peaks['masked'] / peaks['unmasked']:.3f}"),
            )
    print(f"\n{versions()}")


if __name__ == "__main__":
    main()
