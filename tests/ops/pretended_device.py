"""Train beside a model on a device that is not the CPU, with the CPU as the reference, and count the waits.

`python pretended_device.py FOLDER` does so in a process of its own.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import torch
from pretended_waits import check_waits
from torch import Tensor, nn

import lycoris_ops as lyc
from lycoris_ops.commands import main
from lycoris_ops.patch import registry
from lycoris_ops.patch.paths import plain_torch
from lycoris_ops.patch.paths.plain_torch import parts
from lycoris_ops.train.trainer import Trainer
from tests.harness.launches import Launches
from tests.harness.pretended import NAME, blocking, crossed, registered


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 4))


def batches(device: str) -> list[Any]:
    drawn = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(6, size, generator=drawn).to(device) for size in (8, 4)) for _ in range(3)]


seen: list[torch.dtype] = []


def loss(module: nn.Module, batch: Any) -> Tensor:
    found = module(batch[0])
    seen.append(found.dtype)
    return (found.float() - batch[1]).square().mean()


def task() -> tuple[Any, ...]:
    """For the command line."""
    return model().to(NAME), batches(NAME), loss


def networks(device: str) -> list[lyc.LycorisNetwork]:
    """Networks of every origin: fresh, planned, and of a file in memory."""
    module = model().to(device)
    probe = lyc.probe(module, batches(device), loss, include=("*", "1"))
    plan = lyc.plan_ranks(probe, size=lyc.Rank(2), algorithms=("lora", "lokr"))
    fresh = lyc.create_lycoris(
        module, rank=2, seed=1, include=("*", "1"), bias=True,
        overrides={"0": {"dora": "output"}, "3": {"algorithm": "loha"}},
    )  # fmt: skip
    planned = lyc.create_lycoris(module, plan=plan, seed=1)
    read = lyc.create_lycoris(module, weights=fresh.to_adapter(include=("0", "3")))
    return [fresh, planned, read]


def check(folder: Path) -> None:
    for here, there in zip(networks(NAME), networks("cpu"), strict=True):
        assert {parameter.device.type for parameter in here.parameters()} == {NAME}
        for one, other in zip(here.parameters(), there.parameters(), strict=True):
            torch.testing.assert_close(one.detach().cpu(), other.detach(), rtol=1e-5, atol=1e-6)
        options = lyc.TrainOptions(steps=6, lr=0.01, ema=0.9, bar=False, picture=False)
        data = batches(NAME)
        crossed.clear()
        lyc.train_network(here, data, loss, options)
        # What is read is numbers, and a few values of each weight that tell the model from others.
        assert max(map(len, crossed)) == 1, crossed
        lyc.train_network(there, batches("cpu"), loss, options)
        for one, other in zip(here.parameters(), there.parameters(), strict=True):
            torch.testing.assert_close(one.detach().cpu(), other.detach(), rtol=1e-4, atol=1e-5)
        here.restore()
        there.restore()
    for autocast, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        net = lyc.create_lycoris(model().to(NAME), rank=2, seed=1)
        trainer = Trainer(net, loss, lyc.TrainOptions(steps=1, autocast=autocast))
        assert trainer.device.type == NAME
        assert trainer.scaler.is_enabled() == (autocast == "fp16") and trainer.scaler._device == NAME
        seen.clear()
        trainer.step(*batches(NAME))
        assert set(seen) == {dtype}, seen
        trainer.save_state(folder / f"{autocast}.state.safetensors")
        again = Trainer(net, loss, trainer.options, steps=2)
        again.load_state(folder / f"{autocast}.state.safetensors")
        again.step(*batches(NAME))
        assert again.device.type == NAME
        net.restore()
    (folder / "settings.toml").write_text(
        "entry = 'pretended_device:task'\n[plan]\nsize = 'rank 2'\n[network]\nseed = 1\n"
        f"[train]\nsteps = 2\nautocast = 'bf16'\nbar = false\npicture = false\n"
        f"output = '{folder.as_posix()}/a.safetensors'\n",
        encoding="utf-8",
    )
    crossed.clear()
    seen.clear()
    assert main(["train", str(folder / "settings.toml")]) == 0
    assert set(seen[-2:]) == {torch.bfloat16}


class Split(nn.Module):
    """A model whose layers are on devices of their own."""

    def __init__(self, *devices: str) -> None:
        super().__init__()
        layers = (nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 4))
        self.layers = nn.ModuleList(one.to(device) for one, device in zip(layers, devices, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x.to(layer.weight.device)))
        return x


def check_devices() -> None:
    """Each layer is where its weight is, and goes on beside a model that has moved since."""
    for options in ({"algorithm": "lora"}, {"algorithm": "lora", "dora": "output"}, {"algorithm": "oftv2"}):
        devices = ("cpu", NAME, "cpu")
        split = Split(*devices)
        network = lyc.create_lycoris(split, rank=2, seed=1, **options)  # pyright: ignore[reportArgumentType]
        network.apply_to()
        for member, device in zip(network.members.values(), devices, strict=True):
            assert {parameter.device.type for parameter in member.parameters()} == {device}
        split(torch.randn(3, 8)).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        split.to(NAME)
        split(torch.randn(3, 8).to(NAME)).cpu().sum().backward()
        network.restore()


def check_offloaded() -> None:
    """Beside weights that are in memory within each pass only, with the values of a model that keeps them."""
    for options in ({}, {"dora": "output"}, {"dora": "output", "form": "rebuilt"}, {"algorithm": "ia3"}):
        found: list[list[Tensor]] = []
        for offloaded in (False, True):
            module = model().to("cpu" if offloaded else NAME)
            if offloaded:
                accelerate.cpu_offload(module, execution_device=torch.device(NAME))
            network = lyc.create_lycoris(module, rank=2, seed=1, **options)  # pyright: ignore[reportArgumentType]
            network.to(NAME).apply_to()
            module(batches(NAME)[0][0]).square().mean().backward()
            found.append([parameter.grad.cpu() for parameter in network.parameters()])
            network.restore()
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def check_patches() -> None:
    """Factors and batches come without a wait, so beside the device's work where they are in pinned memory.
    A weight is cut to fit a CPU's cache, and not for an accelerator."""
    large = torch.empty(3072, 12288)
    assert len(list(parts(large))) > 1 == len(list(parts(torch.empty(large.shape, device=NAME))))
    drawn = torch.Generator().manual_seed(1)
    shapes = {"a.lora_up.weight": (1100, 4), "a.lora_down.weight": (4, 1024), "b.diff": (1100, 1024)}
    tensors = {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    layers = [(one, 0.5) for one in lyc.adapter_of_tensors(tensors, name="both").layers.values()]
    wanted = lyc.patch_(torch.ones(1100, 1024), layers)
    own = registry.PATHS
    registry.PATHS = (replace(plain_torch.PATH, devices=(NAME,)),)
    for built in ("cpu", NAME):
        crossed.clear()
        blocking.clear()
        weight = torch.ones(1100, 1024, device=NAME)
        plan = lyc.PatchPlan.build(weight.shape, built, layers)
        with Launches() as launches:
            plan.apply_(weight, plan.tensors, plan.strengths)
        assert {(1100, 4), (4, 1024), (1100, 1024)} <= set(crossed) and not any(map(len, blocking)), blocking
        assert launches.names.count("mm") == 1, launches.names
        torch.testing.assert_close(weight.cpu(), wanted)

    def failing(patches: Sequence[registry.Patch]) -> None:
        plain_torch.PATH.apply([patch._replace(weight=patch.weight.clone()) for patch in patches])
        raise registry.PathError("no compiler", patches)

    # A path that fails once the sums are known.
    broken = replace(registry.PATHS[0], name="fails", apply=failing)
    registry.PATHS = (broken, *registry.PATHS)
    turned = lyc.create_lycoris(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(NAME), algorithm="oft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turned.merge_to()
    registry.PATHS = own
    del registry._FAILED["fails"]
    blocking.clear()
    crossed.clear()
    network = lyc.create_lycoris(model().to(NAME), rank=2, seed=1)
    given = lyc.TrainOptions(steps=2, lr=0.01, device=NAME, bar=False, picture=False)
    lyc.train_network(network, batches("cpu"), loss, given)
    assert (6, 8) in crossed and (6, 8) not in blocking


if __name__ == "__main__":
    # The command line imports it by its name, and is to find this one.
    sys.modules["pretended_device"] = sys.modules["__main__"]
    kept = registered()
    check(Path(sys.argv[1]))
    check_devices()
    check_offloaded()
    check_patches()
    check_waits()
