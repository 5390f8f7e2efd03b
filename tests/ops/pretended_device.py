"""A device that is not the CPU, on any machine: its tensors are the CPU's, and it refuses to mix with them.

`python pretended_device.py FOLDER` trains beside a model on it, with the CPU as the reference. It needs a
process of its own, since torch knows one such device and keeps it.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration as registration
from torch.utils._pytree import tree_leaves, tree_map

import lycoris_ops as lyc
from lycoris_ops.commands import main
from lycoris_ops.train.trainer import Trainer

NAME = "pretended"
# Torch types none of this.
TORCH: Any = torch
# The CPU's tensors by the storages that stand for them, which are kept so that none is used again.
held: dict[int, tuple[Any, Tensor]] = {}
VIEWS = (
    *(
        "transpose.int",
        "permute",
        "t",
        "select.int",
        "slice.Tensor",
        "expand",
        "unsqueeze",
        "squeeze",
        "squeeze.dim",
    ),
    *("squeeze.dims", "split.Tensor", "split_with_sizes", "unbind.int", "diagonal", "unfold"),
)
"""What torch makes of strides itself, which are not told here."""
CAST = ("layer_norm", "linear", "matmul", "mm", "addmm", "bmm", "baddbmm")
crossed: list[tuple[int, ...]] = []
"""The shapes of tensors that went from one device to another."""


def on(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def inner(value: Any) -> Any:
    return held[value.untyped_storage()._cdata][1] if on(value) else value


def run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Every operator on the device: that of the CPU on the tensors behind these."""
    name, tensors = operator.name(), [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    mixed = len({x.device.type for x in tensors if x.ndim or on(x)}) > 1
    given, named = tree_map(inner, (args, kwargs))
    if name == "aten::_copy_from":
        crossed.extend([tuple(args[0].shape)] * mixed)
        given[1].copy_(given[0])
        return args[1]
    if mixed or ("as_strided" in name and not given[0].is_contiguous()):
        raise RuntimeError(f"{name} cannot be had for tensors of {len(tensors)} kinds")
    if "device" in named:
        named["device"] = torch.device("cpu")
    # The device's tensors pass for contiguous ones.
    views = ("aten::view", "aten::_reshape_alias")
    made = given[0].reshape(given[1]) if name in views else operator(*given, **named)
    known = {id(inner(x)): x for x in tensors if on(x)}

    return tree_map(
        lambda value: (
            known[id(value)] if id(value) in known else shown(value) if isinstance(value, Tensor) else value
        ),
        made,
    )


def shown(value: Tensor) -> Tensor:
    """A tensor of the device, with one of the CPU behind it."""
    tensor: Tensor = TORCH._C._acc.create_empty_tensor(value.shape, value.dtype)
    held[tensor.untyped_storage()._cdata] = tensor.untyped_storage(), value
    return tensor


def squeeze(x: Tensor, dim: int) -> Tensor:
    """In place, by which a tensor gets another shape."""
    x.data = shown(inner(x).squeeze(dim))
    return x


def cast(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """An operator under autocast."""
    keys = TORCH._C.DispatchKeySet(TORCH._C.DispatchKey.AutocastPrivateUse1)
    with TORCH._C._ExcludeDispatchKeyGuard(keys):
        dtype = torch.float32 if operator.name() == "aten::layer_norm" else torch.get_autocast_dtype(NAME)
        return operator(*tree_map(lambda x: x.to(dtype) if on(x) else x, args), **kwargs)


class Module(registration._DummyBackendModule):  # type: ignore[misc]
    """What torch asks of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def registered() -> list[Any]:
    """The device's registrations, which end with them."""
    TORCH.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, Module())
    whole, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    whole.fallback(run, "PrivateUse1")
    whole.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for names, function, key in ((VIEWS, run, "PrivateUse1"), (CAST, cast, "AutocastPrivateUse1")):
        for name in names:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(TORCH.ops.aten, packet), overload or "default")
            aten.impl(name, partial(function, operator), key)
    aten.impl("squeeze_.dim", squeeze, "PrivateUse1")
    return [whole, aten]


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


if __name__ == "__main__":
    # The command line imports it by its name, and is to find this one.
    sys.modules["pretended_device"] = sys.modules["__main__"]
    kept = registered()
    check(Path(sys.argv[1]))
