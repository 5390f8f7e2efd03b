"""One step of training, forward and backward: this pack's network beside those of its peers, in one process.

`python -m benchmarks.train_step [--device cuda] [--rounds N] [--seconds S] [--cases TEXT]` prints a
table. Each row has at least N rounds, and goes on until S seconds have passed. A step goes through one layer,
or through a transformer block of six, with a frozen base and gradients for the input, as in the middle of a
model. All peers train the same algorithm at the same sizes, and take turns in each round. Each round begins
with another peer, because it matters what ran just before.

Times are medians over the rounds, in ms. A ratio is the median over the rounds of a peer's time over ours:
above 1, ours is faster. It is shown for the fastest peer, and for the better of lycoris-lora's two ways.
"saved" is what autograd keeps from forward to backward beyond what the base alone keeps, in MB. It decides
the peak memory of a whole model. Peers: lycoris-lora by rebuilt weights and by its bypass, PEFT, and
ComfyUI's training adapters in both modes of its training node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import lycoris_ops as lyc
from benchmarks.cases import DTYPES
from benchmarks.side import Table, boot, in_turn, middle, parser, ratio, versions

FULL = 10**6
"""A rank at which every package keeps both factors of a LoKr full."""


@dataclass(frozen=True)
class Algorithm:
    """An algorithm, with the settings that choose it in each package."""

    title: str
    ours: dict[str, Any]
    lycoris: dict[str, Any]
    peft: Callable[[list[str]], Any]
    host: str | None


def _in_peft(kind: str, **options: Any) -> Callable[[list[str]], Any]:
    def config(names: list[str]) -> Any:
        import peft

        return getattr(peft, kind)(target_modules=names, **options)

    return config


def _in_lycoris(algo: str, rank: int, alpha: int, **options: Any) -> dict[str, Any]:
    named = {f"{layers}_{what}" for layers in ("linear", "conv") for what in ("dim", "alpha")}
    return {"algo": algo, **{name: rank if "dim" in name else alpha for name in named}, **options}


ALGORITHMS = (
    Algorithm(
        "LoRA r16",
        {"algorithm": "lora", "rank": 16},
        _in_lycoris("locon", 16, 16),
        _in_peft("LoraConfig", r=16, lora_alpha=16),
        "lora",
    ),
    Algorithm(
        "LoHa r8",
        {"algorithm": "loha", "rank": 8},
        _in_lycoris("loha", 8, 8),
        _in_peft("LoHaConfig", r=8, alpha=8),
        "loha",
    ),
    Algorithm(
        "LoKr full",
        {"algorithm": "lokr", "rank": FULL},
        _in_lycoris("lokr", FULL, 1),
        _in_peft("LoKrConfig", r=FULL, alpha=FULL),
        "lokr",
    ),
    Algorithm(
        "DoRA r16",
        {"algorithm": "lora", "rank": 16, "dora": "output"},
        _in_lycoris("locon", 16, 16, dora_wd=True),
        _in_peft("LoraConfig", r=16, lora_alpha=16, use_dora=True),
        None,
    ),
)


class Block(nn.Module):
    """Attention and MLP of a transformer, without norms: six linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = (part(x).unflatten(-1, (-1, 64)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.o(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(x)))


@dataclass(frozen=True)
class Place:
    title: str
    make: Callable[[], nn.Module]
    input: tuple[int, ...]
    dtype: str = "fp32"


def _linear(width: int, tokens: int, dtype: str = "fp32") -> Place:
    make = lambda: nn.Sequential(nn.Linear(width, width))  # noqa: E731
    return Place(f"linear {width}, {tokens} tokens", make, (1, tokens, width), dtype)


PLACES = (
    *(_linear(1280, 4096), _linear(1280, 4096, "bf16"), _linear(3072, 1024), _linear(1280, 77)),
    # Small layers, where most of the time goes into Python, as on a GPU.
    *(_linear(64, 77), _linear(64, 77, "bf16")),
    Place("conv 320 3x3, 32x32", lambda: nn.Sequential(nn.Conv2d(320, 320, 3, padding=1)), (1, 320, 32, 32)),
    Place("block 640, 1024 tokens", lambda: Block(640), (1, 1024, 640)),
)


def ours(base: nn.Module, algorithm: Algorithm) -> list[nn.Parameter]:
    network = lyc.create_lycoris(base, **algorithm.ours, seed=0).apply_to()
    return list(network.parameters())


def lycoris(base: nn.Module, algorithm: Algorithm, *, bypass: bool) -> list[nn.Parameter]:
    import lycoris as package

    if bypass and algorithm.lycoris.get("dora_wd"):
        raise NotImplementedError("its bypass leaves the magnitude out")
    network = package.create_lycoris(base, 1.0, **algorithm.lycoris)
    network.apply_to()
    for one in network.loras:
        one.bypass_mode = bypass
    return list(network.parameters())


def peft(base: nn.Module, algorithm: Algorithm) -> list[nn.Parameter]:
    import peft as package

    names = [name for name, one in base.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    package.inject_adapter_in_model(algorithm.peft(names), base)
    return [parameter for parameter in base.parameters() if parameter.requires_grad]


def host(base: nn.Module, algorithm: Algorithm, *, bypass: bool) -> list[nn.Parameter]:
    from comfy.weight_adapter import adapter_maps
    from comfy.weight_adapter.bypass import BypassForwardHook

    if algorithm.host is None:
        raise NotImplementedError("the host does not train it")
    kind = {one.name: one for one in adapter_maps.values()}[algorithm.host]
    rank = algorithm.ours["rank"]
    found: list[nn.Parameter] = []
    for module in [one for one in base.modules() if isinstance(one, nn.Linear | nn.Conv2d)]:
        # For LoKr the host takes the size of the first factor in place of a rank.
        size = int(module.weight.shape[0] ** 0.5) if rank == FULL else rank
        adapter = kind.create_train(module.weight, size, float(size))
        found += [one for one in adapter.parameters() if one.requires_grad]
        if bypass:
            BypassForwardHook(module, adapter, multiplier=1.0).inject()
        else:
            module.forward = _by_weight(module, adapter)
    return found


def _by_weight(module: Any, adapter: Any) -> Callable[[Tensor], Tensor]:
    """A forward pass with the changed weight, as the host's training node makes it."""

    def run(x: Tensor) -> Tensor:
        weight = adapter(module.weight)
        if isinstance(module, nn.Linear):
            return functional.linear(x, weight, module.bias)
        return functional.conv2d(x, weight, module.bias, padding=module.padding)

    return run


PEERS: dict[str, Callable[[nn.Module, Algorithm], list[nn.Parameter]]] = {
    "ours": ours,
    "lycoris rebuilt": lambda base, algorithm: lycoris(base, algorithm, bypass=False),
    "lycoris bypass": lambda base, algorithm: lycoris(base, algorithm, bypass=True),
    "PEFT": peft,
    "ComfyUI weight": lambda base, algorithm: host(base, algorithm, bypass=False),
    "ComfyUI bypass": lambda base, algorithm: host(base, algorithm, bypass=True),
}


def saved(run: Callable[[], Tensor], free: set[int]) -> float:
    """MB that autograd keeps for one pass. Each storage counts once, and those in `free` do not count."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in free:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(sizes.values()) / 1e6


def shown(milliseconds: float) -> str:
    return f"{milliseconds:.{1 if milliseconds >= 2 else 3}f}"


def measure(
    place: Place, algorithm: Algorithm, device: str, rounds: int, seconds: float, table: Table
) -> None:
    dtype = DTYPES[place.dtype]
    torch.manual_seed(0)
    x = torch.randn(place.input, device=device, dtype=dtype, requires_grad=True)
    gradient = torch.randn_like(place.make().to(device, dtype)(x))
    bases: dict[str, tuple[nn.Module, list[nn.Parameter]]] = {}
    refused: dict[str, str] = {}
    for name, build in {"base": lambda base, algorithm: [], **PEERS}.items():
        base = place.make().to(device, dtype).requires_grad_(False)
        try:
            parameters = build(base, algorithm)
            base(x).backward(gradient)
        except (NotImplementedError, TypeError, RuntimeError, ValueError) as error:
            if name in ("base", "ours"):
                raise
            refused[name] = f"{type(error).__name__}"
            continue
        bases[name] = (base, parameters)

    def forget(name: str) -> None:
        for parameter in (*bases[name][1], x):
            parameter.grad = None

    def step(base: nn.Module) -> None:
        base(x).backward(gradient)

    works = {name: partial(step, base) for name, (base, _) in bases.items()}
    times = in_turn(works, rounds, before=forget, warm=2, device=device, seconds=seconds)
    kept: dict[str, float] = {}
    for name, (base, parameters) in bases.items():
        free = {one.untyped_storage().data_ptr() for one in (*base.parameters(), *parameters)}
        kept[name] = saved(partial(base, x), free)
    ms = middle(times)
    ratios = {name: ratio(times, name, "ours") for name in bases if name not in ("base", "ours")}
    fastest, leanest = min(ratios, key=ratios.__getitem__), min(ratios, key=kept.__getitem__)
    each = (
        f"{shown(ms[name])} / {kept[name] - kept['base']:.1f}" if name in bases else refused[name]
        for name in PEERS
    )
    # lycoris-lora cannot train a DoRA beside a bfloat16 weight.
    lycoris_lora = [value for name, value in ratios.items() if name.startswith("lycoris")]
    best = f"{min(lycoris_lora):.2f}" if lycoris_lora else "-"
    first = f"{ratios[fastest]:.2f} {fastest}"
    table.row(place.title, place.dtype, algorithm.title, shown(ms["base"]), *each, first, best, leanest)


def main() -> None:
    made = parser(__doc__, rounds=9, device=True)
    made.add_argument("--seconds", type=float, default=20)
    made.add_argument("--cases", default="", help="measure only rows whose title has this text")
    options = made.parse_args()
    boot(options.device)
    titles = ["place", "dtype", "algorithm", "base ms", *(f"{name} ms / saved MB" for name in PEERS)]
    table = Table(*titles, "ratio of the fastest peer", "of lycoris-lora", "leanest peer")
    for place in PLACES:
        for algorithm in ALGORITHMS:
            if options.cases in f"{place.title} {place.dtype} {algorithm.title}":
                measure(place, algorithm, options.device, options.rounds, options.seconds, table)
    print(f"\n{versions()}")


if __name__ == "__main__":
    main()
