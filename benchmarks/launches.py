"""What a trained layer adds to its module's pass: launches, and time that is Python's, beside PEFT's.

`python -m benchmarks.launches [--rounds N] [--cases TEXT] [--sizes N ...]` prints a table. A launch is an
operation of torch that runs on a device: views and empty tensors are none. On a GPU the time of a small layer
is that of its launches. They are counted on a device that only pretends to be an accelerator. Each pair is of
a forward pass, and of a step: forward and backward, with gradients for the input and for the layer. Both are
counted beyond those of the module alone. Times are medians over the rounds, in microseconds, of 8 tokens on
the CPU; the works take turns. A layer acts as it does unless told otherwise ("auto"), or beside its module
("bypass").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import lycoris_ops as lyc
from benchmarks.side import Table, in_turn, middle, parser
from tests.harness import pretended
from tests.harness.launches import Maker, launches_of, works_of

KEPT: list[object] = []
"""The registrations of the pretended device, for as long as the program runs."""
SIZES = (64, 1280)


@dataclass(frozen=True)
class Kind:
    """A kind of layer, as each of the two is told of it; `peft` is None where PEFT has no such kind."""

    title: str
    ours: dict[str, Any]
    peft: tuple[str, dict[str, Any]] | None = None


KINDS = (
    Kind("LoRA", {"algorithm": "lora", "rank": 8}, ("LoraConfig", {"r": 8, "lora_alpha": 8})),
    Kind(
        "DoRA",
        {"algorithm": "lora", "rank": 8, "dora": "output"},
        ("LoraConfig", {"r": 8, "lora_alpha": 8, "use_dora": True}),
    ),
    Kind("DoRA of inputs", {"algorithm": "lora", "rank": 8, "dora": "input"}),
    Kind("LoHa", {"algorithm": "loha", "rank": 8}, ("LoHaConfig", {"r": 8, "alpha": 8})),
    Kind("LoKr", {"algorithm": "lokr", "rank": 2}, ("LoKrConfig", {"r": 2, "alpha": 2})),
    Kind("LoKr full", {"algorithm": "lokr", "rank": 10**6}, ("LoKrConfig", {"r": 10**6, "alpha": 10**6})),
    Kind("OFT v2", {"algorithm": "oftv2", "rank": 32}, ("OFTConfig", {"oft_block_size": 32})),
    Kind("OFT", {"algorithm": "oft", "rank": 32}),
    Kind("BOFT", {"algorithm": "boft", "rank": 10}),
    Kind("BOFT of PEFT", {"algorithm": "boft_peft", "rank": 8}, ("BOFTConfig", {"boft_block_size": 8})),
    Kind("IA3", {"algorithm": "ia3"}, ("IA3Config", {"feedforward_modules": []})),
    Kind("GLoRA", {"algorithm": "glora", "rank": 8}),
    Kind("full", {"algorithm": "full"}),
)  # fmt: skip


def ours(base: nn.Module, kind: Kind, form: str) -> list[nn.Parameter]:
    return list(lyc.create_lycoris(base, **kind.ours, form=form, seed=0).apply_to().parameters())


def peft(base: nn.Module, kind: Kind) -> list[nn.Parameter]:
    import peft as package

    assert kind.peft is not None
    name, options = kind.peft
    package.inject_adapter_in_model(getattr(package, name)(target_modules=["0"], **options), base)
    return [parameter for parameter in base.parameters() if parameter.requires_grad]


def measure(size: int, kind: Kind, rounds: int, table: Table) -> None:
    makers: dict[str, Maker] = {
        "base": lambda base: [],
        "auto": lambda base: ours(base, kind, "auto"),
        "bypass": lambda base: ours(base, kind, "bypass"),
    }
    if kind.peft is not None:
        makers["PEFT"] = lambda base: peft(base, kind)
    # PEFT and BOFT do the same on every device, in operations that the pretended one has not.
    lacks = {"PEFT", *makers} if "BOFT" in kind.title else {"PEFT"}
    there = {name: make for name, make in makers.items() if name not in lacks}
    launches = {**launches_of(size, "cpu", makers), **launches_of(size, pretended.NAME, there)}
    works, forget = works_of(size, "cpu", makers)
    times = [middle(in_turn(each, rounds, before=forget, warm=5)) for each in works.values()]
    cells: list[str] = []
    for name in ("auto", "bypass", "PEFT"):
        if name not in makers:
            cells += ["-", "-"]
            continue
        more = (found - alone for found, alone in zip(launches[name], launches["base"], strict=True))
        took = (1e3 * (found[name] - found["base"]) for found in times)
        cells += [" / ".join(map(str, more)), " / ".join(f"{one:.0f}" for one in took)]
    table.row(kind.title, size, *cells)


def main() -> None:
    made = parser(__doc__, rounds=60)
    made.add_argument("--cases", default="", help="measure only kinds whose title has this text")
    made.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = made.parse_args()
    KEPT.extend(pretended.registered())
    titles = (f"{who} {what}" for who in ("auto", "bypass", "PEFT") for what in ("launches", "us"))
    table = Table("kind", "size", *titles)
    for kind in KINDS:
        for size in options.sizes:
            if options.cases in kind.title:
                measure(size, kind, options.rounds, table)
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
