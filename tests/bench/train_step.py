"""One step of training, forward and backward: this pack's network beside those of its peers, in one process.

`python -m tests.bench.train_step [--device cuda] [--rounds N] [--seconds S] [--cases TEXT]` prints a
table. Each row has at least so many rounds, and takes about so many seconds. A step goes through one layer,
or through a transformer block of six, with a frozen base and gradients for the input, as in the middle of a
model. All peers train the same algorithm at the same sizes, and take turns in each round, of which each
begins with another one: what ran just before matters.

Times are medians over the rounds, in ms. A ratio is the median over the rounds of a peer's time over ours:
above 1, ours is faster. It is told of the peer with the least, and of the better of lycoris-lora's two ways.
"saved" is what autograd keeps from forward to backward beyond what the base alone keeps, in MB: it is what
decides the peak of a whole model. Peers: lycoris-lora by rebuilt weights and by its bypass, PEFT, and
ComfyUI's training adapters in both modes of its training node.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import lycoris_ops as lyc
from tests.bench.bypass import boot, clock
from tests.bench.cases import DTYPES
from tests.harness.facts import facts

FULL = 10**6
"""A rank at which every package keeps both factors of a LoKr full."""


@dataclass(frozen=True)
class Algorithm:
    """An algorithm, as each package is told of it."""

    title: str
    ours: dict[str, Any]
    lycoris: dict[str, Any]
    peft: Callable[[list[str]], Any]
    host: str | None


def _peft(kind: str, **options: Any) -> Callable[[list[str]], Any]:
    def config(names: list[str]) -> Any:
        import peft

        return getattr(peft, kind)(target_modules=names, **options)

    return config


ALGORITHMS = (
    Algorithm(
        "LoRA r16",
        {"algorithm": "lora", "rank": 16},
        {"algo": "locon", "linear_dim": 16, "linear_alpha": 16, "conv_dim": 16, "conv_alpha": 16},
        _peft("LoraConfig", r=16, lora_alpha=16),
        "lora",
    ),
    Algorithm(
        "LoHa r8",
        {"algorithm": "loha", "rank": 8},
        {"algo": "loha", "linear_dim": 8, "linear_alpha": 8, "conv_dim": 8, "conv_alpha": 8},
        _peft("LoHaConfig", r=8, alpha=8),
        "loha",
    ),
    Algorithm(
        "LoKr full",
        {"algorithm": "lokr", "rank": FULL},
        {"algo": "lokr", "linear_dim": FULL, "linear_alpha": 1, "conv_dim": FULL, "conv_alpha": 1},
        _peft("LoKrConfig", r=FULL, alpha=FULL),
        "lokr",
    ),
    Algorithm(
        "DoRA r16",
        {"algorithm": "lora", "rank": 16, "dora": "output"},
        {
            "algo": "locon",
            "linear_dim": 16,
            "linear_alpha": 16,
            "conv_dim": 16,
            "conv_alpha": 16,
            "dora_wd": True,
        },
        _peft("LoraConfig", r=16, lora_alpha=16, use_dora=True),
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


PLACES = (
    Place("linear 1280, 4096 tokens", lambda: nn.Sequential(nn.Linear(1280, 1280)), (1, 4096, 1280)),
    Place("linear 1280, 4096 tokens", lambda: nn.Sequential(nn.Linear(1280, 1280)), (1, 4096, 1280), "bf16"),
    Place("linear 3072, 1024 tokens", lambda: nn.Sequential(nn.Linear(3072, 3072)), (1, 1024, 3072)),
    Place("linear 1280, 77 tokens", lambda: nn.Sequential(nn.Linear(1280, 1280)), (1, 77, 1280)),
    # Where what Python does beside a layer is most of the time, as on a GPU.
    Place("linear 64, 77 tokens", lambda: nn.Sequential(nn.Linear(64, 64)), (1, 77, 64)),
    Place("linear 64, 77 tokens", lambda: nn.Sequential(nn.Linear(64, 64)), (1, 77, 64), "bf16"),
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
    """A pass by the changed weight, as the host's training node patches it."""

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
    """MB that autograd keeps of one pass, each storage once, without those in `free`."""
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


def measure(place: Place, algorithm: Algorithm, device: str, rounds: int, seconds: float) -> None:
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
    times: dict[str, list[float]] = {name: [] for name in bases}
    turns = list(bases)
    began, number = clock(device), -2
    # The first two set things up.
    while number < rounds or clock(device) - began < seconds:
        number += 1
        turns = turns[1:] + turns[:1]
        for name in turns:
            base, parameters = bases[name]
            for parameter in (*parameters, x):
                parameter.grad = None
            start = clock(device)
            base(x).backward(gradient)
            if number > 0:
                times[name].append(1e3 * (clock(device) - start))
    kept: dict[str, float] = {}
    for name, (base, parameters) in bases.items():
        free = {one.untyped_storage().data_ptr() for one in (*base.parameters(), *parameters)}
        kept[name] = saved(lambda base=base: base(x), free)
    middle = {name: statistics.median(found) for name, found in times.items()}
    peers = [name for name in bases if name not in ("base", "ours")]
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True))
        for name in peers
    }
    fastest = min(peers, key=ratios.__getitem__)
    leanest = min(peers, key=kept.__getitem__)
    columns = [place.title, place.dtype, algorithm.title, shown(middle["base"])]
    for name in PEERS:
        columns.append(
            f"{shown(middle[name])} / {kept[name] - kept['base']:.1f}" if name in bases else refused[name]
        )
    # With DoRA beside a bfloat16 weight it cannot train.
    lycoris_lora = [ratio for name, ratio in ratios.items() if name.startswith("lycoris")]
    columns += [
        f"{ratios[fastest]:.2f} {fastest}",
        f"{min(lycoris_lora):.2f}" if lycoris_lora else "-",
        leanest,
    ]
    print("| " + " | ".join(columns) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--cases", default="", help="measure only rows whose title has this text")
    options = parser.parse_args()
    boot(options.device)
    titles = ["place", "dtype", "algorithm", "base ms", *(f"{name} ms / saved MB" for name in PEERS)]
    titles += ["ratio of the fastest peer", "of lycoris-lora", "leanest peer"]
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for place in PLACES:
        for algorithm in ALGORITHMS:
            if options.cases in f"{place.title} {place.dtype} {algorithm.title}":
                measure(place, algorithm, options.device, options.rounds, options.seconds)
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, ComfyUI {facts().host}")


if __name__ == "__main__":
    main()
