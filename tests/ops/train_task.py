"""A task for `python -m lycoris_ops train` and for several processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.commands import main
from lycoris_ops.processes import copies_of
from lycoris_ops.train.in_trainer import mean_gradients


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))


def batches(count: int = 5, seed: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(6, 8, generator=generator), torch.randn(6, 4, generator=generator)) for _ in range(count)
    ]


def loss(module: nn.Module, batch: Any) -> Tensor:
    return (module(batch[0]) - batch[1]).square().mean()


def task(count: int = 5, wait: bool = False) -> tuple[Any, ...]:
    def slow(module: nn.Module, batch: Any) -> Tensor:
        if wait and module.training:
            print("a step", flush=True)
            torch.rand(()).item()
            __import__("time").sleep(0.2)
        return loss(module, batch)

    return model(), batches(count, 1), slow, batches(2, 2)


def network_of(module: nn.Module, seed: int) -> lyc.LycorisNetwork:
    return lyc.create_lycoris(module, rank=2, seed=seed, overrides={"0": {"dora": "output"}})


def options(folder: Path, accumulation: int, steps: int) -> lyc.TrainOptions:
    return lyc.TrainOptions(
        steps=steps, lr=0.01, accumulation=accumulation, output=folder / "out.safetensors", validate_every=2,
        # At any time: the first process alone writes it.
        bar=False, picture=False, ema=0.9, checkpoint_minutes=1e-9,
    )  # fmt: skip


def deep() -> nn.Module:
    """A model with a layer for each of four kinds, of sizes that two processes cannot all halve."""
    torch.manual_seed(0)
    sizes = (8, 12, 10, 9, 6, 4)
    layers = [nn.Linear(*pair) for pair in pairwise(sizes)]
    return nn.Sequential(*(one for layer in layers for one in (layer, nn.Tanh())))


def kinds_of(module: nn.Module) -> lyc.LycorisNetwork:
    kinds = {
        "2": {"dora": "output"},
        "4": {"algorithm": "lokr", "factor": 2},
        "6": {"algorithm": "oft", "rank": 4},
    }
    return lyc.create_lycoris(module, rank=3, seed=1, overrides=kinds)


class Experts(nn.Module):
    """Two experts in one parameter, as transformers has them."""

    num_experts = 2

    def __init__(self) -> None:
        super().__init__()
        self.down_proj = nn.Parameter(torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.down_proj[0].T) @ self.down_proj[1].T


def with_experts() -> nn.Module:
    """`deep`, with weights that act where no layer is called."""
    return nn.Sequential(*deep().children(), nn.LayerNorm(4), Experts())


class Loaded(torch.utils.data.Dataset[Any]):
    """Batches that a loader shuffles, and notes which ones are read."""

    def __init__(self, found: list[Any]) -> None:
        self.found = found
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, place: int) -> Any:
        self.read.append(place)
        return self.found[place]


def loaded() -> tuple[Loaded, Any]:
    data = Loaded(batches(5, 1))
    return data, torch.utils.data.DataLoader(data, batch_size=None, shuffle=True)


def race(rank: int, folder: str) -> None:
    """One of two processes that race, with their outcomes in one folder or, as on two machines, in two.

    All races are of one training, under the names "first", "again" (in one folder, which has the outcome),
    and "apart": there only the first process finds it.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for name in ("first", "again", "apart"):
        place = Path(folder) / f"{rank}" if name == "apart" and rank else Path(folder)
        given = lyc.TrainOptions(
            steps=60, search="all", search_share=5.0, bar=False, output=place / f"{name}.safetensors"
        )
        net = network_of(model(), rank)
        searched = lyc.search_network(net, batches(8, 1), loss, given, steps=60, validation=batches(2, 2))
        assert searched.race
        shapes = [tuple(parameter.shape) for parameter in searched.network.parameters()]
        found[name] = (searched.race.json(), searched.options.lr, shapes, str(searched.file))
        torch.distributed.barrier()
    torch.save(found, f"{folder}/{rank}.pt")


def write_in_parts(net: lyc.LycorisNetwork, folder: str) -> None:
    """Write a network with a state of AdamW by torch's own checkpoints, each process its parts."""
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    optimiser = torch.optim.AdamW(net.parameters(), lr=0.0)
    for value in net.parameters():
        value.grad = value.detach().clone()
    optimiser.step()
    network, state = get_state_dict(net, optimiser)
    save({"network": network, "optimiser": state}, checkpoint_id=folder)


def read_in_parts(net: lyc.LycorisNetwork, values: Sequence[Tensor], folder: str) -> None:
    """Read it into another network, which then has the values of the first one, and the moments."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    optimiser = torch.optim.AdamW(net.parameters(), lr=0.0)
    network, state = get_state_dict(net, optimiser)
    load({"network": network, "optimiser": state}, checkpoint_id=folder)
    set_state_dict(net, optimiser, model_state_dict=network, optim_state_dict=state)
    for parameter, wanted in zip(net.parameters(), values, strict=True):
        own, moment = whole([parameter, optimiser.state[parameter]["exp_avg"]])
        assert torch.equal(own, wanted)
        # The gradient was the value itself.
        assert torch.allclose(moment, 0.1 * wanted)


def whole(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors, of which processes may have parts."""
    return [getattr(value, "full_tensor", lambda value=value: value)() for value in tensors]


class Both(nn.Module):
    """A model with its network, as `DistributedDataParallel` needs them."""

    def __init__(self, network: lyc.LycorisNetwork) -> None:
        super().__init__()
        self.model, self.network = network.module, network

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def by_hand(places: Sequence[int], wrap: Callable[[nn.Module], nn.Module]) -> list[Tensor]:
    """The parameters after four steps of a loop of one's own, on these of the two batches of each step."""
    net, data = network_of(model(), 0).apply_to(), batches(8, 1)
    module, optimiser = wrap(Both(net)), torch.optim.AdamW(net.parameter_groups(lr=0.01))
    for step in range(4):
        optimiser.zero_grad()
        for place in places:
            (loss(module, data[2 * step + place]) / len(places)).backward()
        optimiser.step()
    return [value.detach() for value in net.parameters()]


def averaged(net: lyc.LycorisNetwork, rank: int) -> None:
    """Gradients are averaged over two processes and clipped, or halved where they are sums already."""
    for one in net.parameters():
        one.grad = torch.full_like(one, 3.0 if hasattr(one, "full_tensor") else 1.0 + rank)
    found = mean_gradients(net, copies_of(net.module, net), 0.5)
    count = sum(one.numel() for one in net.parameters())
    for grad in whole(one.grad for one in net.parameters() if one.grad is not None):
        assert torch.allclose(grad * found / 0.5, torch.full_like(grad, 1.5))
    assert abs(found / (1.5 * count**0.5) - 1) < 1e-5
    net.zero_grad()


def process(rank: int, folder: str, base: str) -> None:
    """One of two processes: train, be broken off, and go on. With `base` "sharded" they share one."""
    if base == "whole":
        torch.save(by_hand((rank,), nn.parallel.DistributedDataParallel), f"{folder}/ddp{rank}.pt")
    settings = options(Path(folder), 1, 6)

    def halt(report: lyc.StepReport) -> None:
        if report.step == 4:
            raise RuntimeError("halt")

    def network() -> lyc.LycorisNetwork:
        if base == "both sharded":
            from torch.distributed.fsdp import fully_shard

            module = deep()
            fully_shard(module)
            net = kinds_of(module)
            fully_shard(net)
            assert all(hasattr(value, "full_tensor") for value in net.parameters())
            return net
        module = model()
        if base == "sharded":
            from torch.distributed.fsdp import fully_shard

            # The last layer is the model's own, whose weights stay whole after a pass.
            for inner in (module[0], module):  # pyright: ignore[reportIndexIssue]
                fully_shard(inner)
        # Other starts in the processes: those of the first one count.
        return network_of(module, rank)

    data: Any = batches(5, 1)
    held_out, read = batches(2, 2), None
    if base == "sharded":
        read, data = loaded()
    refusing = (lyc.TrainOptions(steps=1, optimiser="adafactor"), lyc.TrainOptions(steps=1, search="rate"))
    for refused in refusing if base == "both sharded" else ():
        with pytest.raises(lyc.LycorisError, match="sharded"):
            lyc.train_network(network(), data, loss, refused)
    # Each process with its own share, or with other steps.
    for given, steps, found in (
        (batches(4, 1)[rank::2], 1, "first batch: .*other values in process ., and its own in process ."),
        (batches(5, 1)[rank::2], 1, "number of batches: .* in process"),
        (batches(4, 1), 1 + rank, "steps: .* in process"),
    ):
        with pytest.raises(lyc.TrainError, match=found):
            lyc.train_network(network(), given, loss, lyc.TrainOptions(steps=steps))
    try:
        lyc.train_network(network(), data, loss, settings, validation=held_out, progress=halt)
    except RuntimeError as error:
        assert str(error) == "halt"
    torch.distributed.barrier()
    net = network()
    averaged(net, rank)
    lyc.train_network(net, data, loss, settings, validation=held_out, resume=settings.folder)
    assert (Path(folder) / "out.safetensors").exists()
    with torch.no_grad():
        trained = net.module(batches(5, 1)[0][0])
    if read is not None:
        # Three of each epoch's five, one of them a second time by the resumed run.
        assert len(read.read) == 3 + 3 + 1, read.read
    weights = whole(net.parameters())
    if base == "both sharded":
        write_in_parts(net, f"{folder}/parts")
        read_in_parts(network(), weights, f"{folder}/parts")
    net.merge_to()
    with torch.no_grad():
        merged = net.module(batches(5, 1)[0][0])
    torch.save(([*weights, merged], trained), f"{folder}/{rank}.pt")


def seen_by(module: nn.Module, batch: Any) -> Tensor:
    """A loss with chance in it, as that of a diffusion model."""
    return loss(module, (batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]))


class Read(list[Any]):
    """Batches that know which of them were taken."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__(batches)
        self.places: set[Any] = set()

    def __getitem__(self, place: Any) -> Any:
        self.places.add(place)
        return super().__getitem__(place)


def probed(module: nn.Module, data: Any) -> lyc.Probe:
    """The probe of all weights of a model by these batches, in several passes."""
    return lyc.probe(module, data, seen_by, include="*", memory=600, seed=3)


def probe(rank: int, folder: str) -> None:
    """One of two processes that probe a model together, which is whole and then sharded."""
    from torch.distributed.fsdp import fully_shard

    from lycoris_ops.ranks import probe as probing

    passes, summed = list[Any](), probing.summed

    def noted(*args: Any, **options: Any) -> Any:
        assert not any(one.gradients for one in passes), "a pass begins with gradients of an earlier one"
        passes.append(summed(*args, **options))
        return passes[-1]

    probing.summed = noted
    sharded = with_experts()
    fully_shard(sharded)
    data = Read(batches(5, 1))
    found = [probed(module, data) for module in (with_experts(), sharded)]
    # In the last turn the second process repeats the batch of the first.
    assert data.places == ({0, 2, 4}, {1, 3, 4})[rank]
    own = Loaded(batches(4, 1))
    sampler = torch.utils.data.DistributedSampler(own, shuffle=False)
    found.append(probed(with_experts(), torch.utils.data.DataLoader(own, batch_size=None, sampler=sampler)))
    assert set(own.read) == ({0, 2}, {1, 3})[rank]
    torch.save(found, f"{folder}/{rank}.pt")


def write_settings(folder: Path, accumulation: int) -> Path:
    """A training with a plan, for the command line: this file as the task, and the settings, whose path is
    returned."""
    folder.mkdir(exist_ok=True)
    (folder / "task.py").write_bytes(Path(__file__).read_bytes())
    settings = folder / "settings.toml"
    settings.write_text(
        "entry = 'task.py:task'\narguments = {count = 4}\n[plan]\nsize = 'rank 2'\nbatches = 2\n"
        "[network]\nseed = 1\n[train]\nsteps = 4\nlr = 0.01\nbar = false\npicture = false\n"
        f"output = '{folder.as_posix()}/out.safetensors'\naccumulation = {accumulation}\n",
        encoding="utf-8",
    )
    return settings


def command(rank: int, folder: str) -> None:
    """One of two processes that train by the command line: with the variables of torchrun, and no group."""
    settings, port = Path(folder) / "settings.toml", [0]
    if rank == 0:
        write_settings(Path(folder), 1)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = [probe.getsockname()[1]]
    torch.distributed.broadcast_object_list(port)
    torch.distributed.destroy_process_group()
    places = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port[0])}
    os.environ.update(places)
    with open(f"{folder}/{rank}.txt", "w", encoding="utf-8") as told, redirect_stdout(told):
        assert main(["train", str(settings), "--json"]) == 0
    assert not torch.distributed.is_initialized()


def each(rank: int, folder: str, *tasks: str) -> None:
    """One of two processes, for `race`, `probe`, `command` and the bases of `process`, with a folder for
    each. After `command` there is no group."""
    alone = {"race": race, "probe": probe, "command": command}
    for task in tasks:
        place = f"{folder}/{task}"
        Path(place).mkdir(exist_ok=True)
        torch.distributed.barrier()
        if task in alone:
            alone[task](rank, place)
        else:
            process(rank, place, task)
