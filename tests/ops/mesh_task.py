"""Tasks for four processes on a device mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import train_task
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, parallel

import lycoris_ops as lyc

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lokr": {"algorithm": "lokr", "factor": 2},
    "dora": {"dora": "output"},
    "oft": {"algorithm": "oft", "rank": 4},
}
LAYOUTS = ("whole", "copies", "base in four", "both in four", "base in two, twice", "both in two, twice")
"""How base and network lie in four processes. With "copies" there are two copies, each in two processes."""
PARTS = ("parts", "parts, sharded", "parts by sequence", "parts by sequence, sharded")
"""Two processes compute each of two copies by tensor parallelism. `fully_shard` divides "sharded" copies."""
CASES = (*(f"{kind}: {layout}" for kind in ("mixed", "plan", *KINDS) for layout in LAYOUTS), *PARTS)


class Words(nn.Module):
    """A model of words. Some of its layers can be computed in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(12, 8), nn.Embedding(10, 8)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.wide, self.back = nn.Linear(8, 6), nn.Linear(6, 8)
        self.head = nn.Linear(8, 4, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.norm(self.words(words) + self.places(words % 10))
        x = x + self.down(torch.tanh(self.up(x)))
        return self.head(x + self.back(self.wide(x)))


def words() -> nn.Module:
    torch.manual_seed(0)
    return Words()


def of_words(module: nn.Module) -> lyc.LycorisNetwork:
    kinds: dict[str, dict[str, Any]] = {
        "up": {"bias": True},
        "down": {"algorithm": "lokr", "factor": 2, "bias": True},
        "wide": {"algorithm": "full"},
        "back": {"algorithm": "loha"},
    }
    return lyc.create_lycoris(module, rank=2, seed=1, include="*", overrides=kinds)


def batches(case: str, count: int, seed: int) -> list[Any]:
    if case not in PARTS:
        return train_task.batches(count, seed)
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(12, (2, 6), generator=generator), torch.randn(2, 6, 4, generator=generator))
        for _ in range(count)
    ]


def network(case: str, module: nn.Module) -> lyc.LycorisNetwork:
    kind = case.partition(":")[0]
    if case in PARTS:
        return of_words(module)
    if kind == "mixed":
        return train_task.kinds_of(module)
    if kind == "plan":
        plan = lyc.plan_ranks(train_task.probed(module, batches(case, 6, 1)), size=lyc.Budget(parameters=400))
        return lyc.create_lycoris(module, plan=plan, seed=1)
    return lyc.create_lycoris(module, rank=3, seed=1, overrides={"*": KINDS[kind]})


def in_parts(module: nn.Module, mesh: Any, *, by_sequence: bool) -> None:
    """Divide `Words` over a mesh of one dimension; `by_sequence` divides activations by tokens too."""
    between = Shard(1) if by_sequence else Replicate()
    into, out = parallel.ColwiseParallel, parallel.RowwiseParallel
    ways: dict[str, Any] = {
        "words": out(input_layouts=Replicate(), output_layouts=between),
        "places": into(output_layouts=between),
        "up": into(input_layouts=between),
        "down": out(output_layouts=between),
        "wide": into(input_layouts=between),
        "back": out(output_layouts=between),
        "head": into(input_layouts=between, output_layouts=Replicate()),
    }
    if by_sequence:
        ways["norm"] = parallel.SequenceParallel(use_local_output=True)
    parallel.parallelize_module(module, mesh, ways)


def laid_out(case: str) -> tuple[lyc.LycorisNetwork, Any]:
    """A network and its model in four processes, and the mesh that a training is given."""
    two = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "parts"))
    if case in PARTS:
        module = words()
        in_parts(module, two["parts"], by_sequence="sequence" in case)
        if "sharded" in case:
            fully_shard(module, mesh=two["data"])
        return network(case, module), None
    module: Any = train_task.deep()
    mesh = init_device_mesh("cpu", (4,)) if "four" in case else two
    if "in" in case.partition(":")[2].split():
        for inner in (module[2], module):
            fully_shard(inner, mesh=mesh)
    net = network(case, module)
    if "both" in case:
        fully_shard(net, mesh=mesh)
    return net, two["data"] if case.endswith("copies") else None


def trained(
    case: str, net: lyc.LycorisNetwork, steps: int, accumulation: int, mesh: Any = None
) -> list[Tensor]:
    """The parameters after some steps on ten batches. The last two batches are a step of their own."""
    given = lyc.TrainOptions(
        steps=steps, lr=0.01, accumulation=accumulation, ema=0.9, clip_norm=0.05, mesh=mesh, bar=False
    )
    data, held_out = batches(case, 10, 1), batches(case, 2, 2)
    lyc.train_network(net, data, train_task.loss, given, validation=held_out)
    return [value.detach() for value in train_task.whole(net.parameters())]


def alone(case: str, steps: int) -> list[Tensor]:
    """`trained` in one process, with as many batches in each step."""
    copies = 2 if case in PARTS or case.endswith("copies") else 4
    module = words() if case in PARTS else train_task.deep()
    return trained(case, network(case, module), steps, copies)


def mesh(rank: int, folder: str, steps: str, *cases: str) -> None:
    """Run one of four processes that train networks. The first one writes the parameters."""
    found: dict[str, list[Tensor]] = {}
    for case in cases:
        net, given = laid_out(case)
        found[case] = trained(case, net, int(steps), 1, given)
    if rank == 0:
        torch.save(found, f"{folder}/0.pt")
    two = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "parts"))
    refused(two)
    merged(two)


def refused(two: Any) -> None:
    """What cannot be right is refused before the first step."""

    def train(net: lyc.LycorisNetwork, mesh: Any = None) -> None:
        given = lyc.TrainOptions(steps=1, lr=0.01, mesh=mesh, bar=False)
        lyc.train_network(net, batches(PARTS[0], 4, 1), train_task.loss, given)

    def divided() -> nn.Module:
        module = words()
        in_parts(module, two["parts"], by_sequence=False)
        return module

    def made(**options: Any) -> Callable[[], Any]:
        return lambda: train(lyc.create_lycoris(divided(), rank=2, **options))

    def sharded() -> None:
        net = of_words(divided())
        fully_shard(net, mesh=two["data"])
        train(net)

    def late() -> None:
        module = words()
        net = lyc.create_lycoris(module, rank=2, algorithm="ia3").apply_to()
        in_parts(module, two["parts"], by_sequence=False)
        train(net)

    def replaced() -> None:
        module: Any = divided()
        module.up.forward = module.up.forward
        train(of_words(module))

    for run, words_of_it in (
        (
            made(dora="output"),
            "a lora layer whose change depends on the weight",
        ),
        (made(algorithm="oft"), "an oft layer whose change depends"),
        (late, "an ia3 layer whose change depends"),
        (made(form="rebuilt"), 'form="rebuilt"'),
        (made(input_dropout=0.1), "input_dropout"),
        (sharded, "a network is sharded beside a model"),
        (replaced, "whose forward others have replaced"),
        (lambda: train(of_words(divided()), two["parts"]), "do not form whole copies of the model"),
        (
            lambda: lyc.probe(divided(), batches(PARTS[0], 2, 1), train_task.loss),
            "the processes compute this layer in parts",
        ),
    ):
        with pytest.raises(lyc.LycorisError, match=words_of_it):
            run()
    # A norm over the outputs of one process: each process has other outputs, and would learn another norm.
    module: Any = divided()
    module.up = nn.Sequential(module.up, nn.LayerNorm(6))
    with pytest.raises(lyc.TrainError, match=r"up\.1\.\w+: .*do not agree"):
        train(of_words(module))


def merged(two: Any) -> None:
    """Merging is exact, also for kinds that cannot act beside layers in parts."""
    for sharded in (False, True):
        whole, base = words(), words()
        in_parts(base, two["parts"], by_sequence=False)
        if sharded:
            fully_shard(base, mesh=two["data"])
        options: Any = {"include": "*", "seed": 1, "dora": "output", "overrides": {"up": {"bias": True}}}
        one, other = (lyc.create_lycoris(module, rank=2, **options) for module in (whole, base))
        for mine, yours in zip(one.parameters(), other.parameters(), strict=True):
            yours.data.copy_(mine.data.add_(0.1))
        one.merge_to()
        other.merge_to()
        for name, value in base.named_parameters():
            own: Any = value
            own = own.full_tensor() if hasattr(own, "full_tensor") else own
            assert torch.equal(own, whole.get_parameter(name)), (sharded, name)
