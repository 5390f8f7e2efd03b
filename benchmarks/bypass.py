"""Bypass of a linear layer: this pack's ("ours") and ComfyUI's own ("host"), side by side in one process.

`python -m benchmarks.bypass [--device cuda] [--rounds N]` prints a table. Each round runs the layer alone,
with our bypass and with the host's, in turn, on the same input. All times are medians over the rounds, in ms.
"ratio" is the time of a whole pass with ours over that with the host's: above 1, ours is slower. "beside" is
the time of a pass less that of the layer alone. An error is the norm of what the output is off by, over the
norm of the exact change; the rounding of the output is in it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

import lycoris_ops as lyc
from benchmarks.cases import DTYPES, EFFECT, Factors, factors
from benchmarks.peers import in_comfyui
from benchmarks.side import Table, boot, in_turn, middle, parser, versions
from lycoris_ops.maths.shapes import factorization

SIZES = ((1280, 4096), (3072, 1024))
"""(Inputs and outputs of the layer, tokens), as in SDXL and in Flux."""
STRENGTH = 0.8


def cases(size: int) -> dict[str, tuple[str, Factors]]:
    """(algorithm, tensors) of each measured adapter by its title, for a weight (size, size)."""
    shape, draw = (size, size), torch.Generator().manual_seed(size)
    outer, inner = factorization(size)
    # Of two full factors, without a rank and alpha.
    full = {"lokr_w1": torch.randn(outer, outer, generator=draw) * EFFECT / size**0.5}
    full["lokr_w2"] = torch.randn(inner, inner, generator=draw)
    titles = {"LoRA r16": "lora", "LoHa r8": "loha", "LoKr r16": "lokr"}
    made = {title: (kind, factors(kind, shape, draw)) for title, kind in titles.items()}
    return {**made, "LoKr full": ("lokr", full)}


def layer(weight: Tensor) -> nn.Linear:
    # On the meta device, so that no weight is made and initialised only to be replaced.
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


def measure(size: int, tokens: int, dtype: torch.dtype, device: str, rounds: int, table: Table) -> None:
    """Measure every case on a weight (size, size)."""
    from comfy.weight_adapter.bypass import BypassForwardHook

    draw = torch.Generator().manual_seed(0)
    weight = (torch.randn(size, size, generator=draw) / size**0.5).to(device, dtype)
    x = torch.randn(1, tokens, size, generator=draw).to(device, dtype)
    exact = x.double() @ weight.double().T
    for name, (kind, tensors) in cases(size).items():
        made = lyc.ALGORITHMS[kind].load(tensors)
        change = STRENGTH * (x.double() @ made.delta(weight.cpu().double()).T.to(device))
        modules = {"layer": layer(weight), "ours": layer(weight), "host": layer(weight)}
        geometry = lyc.geometry_of(modules["ours"])
        assert not isinstance(geometry, str)
        lyc.Bypass(modules["ours"], lyc.BypassPlan.build(geometry, [(made, STRENGTH)])).attach()
        BypassForwardHook(modules["host"], in_comfyui(kind, tensors), multiplier=STRENGTH).inject()
        off = (float((modules[who](x).double() - exact - change).norm()) for who in ("ours", "host"))
        errors = [f"{error / float(change.norm()):.1e}" for error in off]
        ms = middle(in_turn({who: partial(one, x) for who, one in modules.items()}, rounds, device=device))
        beside = [f"{ms[who] - ms['layer']:.1f}" for who in ("ours", "host")]
        times = [f"{ms[who]:.1f}" for who in modules]
        where = f"{size} x {tokens}", str(dtype).removeprefix("torch.")
        table.row(name, *where, *times, f"{ms['ours'] / ms['host']:.2f}", *beside, *errors)


def main() -> None:
    options = parser(__doc__, rounds=15, device=True).parse_args()
    boot(options.device)
    table = Table(
        *("case", "layer x tokens", "dtype", "layer alone ms", "ours", "host", "ratio"),
        *("ours beside", "host beside", "error, ours", "host"),
    )
    with torch.inference_mode():
        for dtype in ("fp32", "bf16"):
            for size, tokens in SIZES:
                measure(size, tokens, DTYPES[dtype], options.device, options.rounds, table)
    print(f"\n{versions()}")


if __name__ == "__main__":
    main()
