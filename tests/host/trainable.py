"""Short forms of what the tests of training do: the pack's own modules, and tiny models open for training."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hosting import Host
from torch import Tensor

from tests.harness import zoo
from tests.harness.inputs import FURTHER, INPUTS

CPU = torch.device("cpu")


def module(host: Host, name: str) -> Any:
    """A module of the pack's `training`, as the host has loaded the pack."""
    return importlib.import_module(f"{host.pack.__name__}.lycoris_nodes.training.{name}".rstrip("."))


def patcher(model: Any) -> Any:
    """The host's patcher on a model."""
    from comfy.model_patcher import ModelPatcher

    return ModelPatcher(model, load_device=CPU, offload_device=CPU)


def tiny(architecture: str, seed: int = 3, **changed: Any) -> Any:
    """A tiny model that runs. Its weights are small, so that its activations are of a usual size."""
    from comfy.model_base import model_sampling

    inputs = {**INPUTS, **FURTHER}[architecture]
    model = zoo.make(architecture, seed, changed={**inputs.changed, **changed}, cut=inputs.cut)
    # The zoo has overwritten the noise levels with the other buffers.
    model.model_sampling = model_sampling(model.model_config, model.model_type)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    return model


def fill(net: Any, seed: int = 0, scale: float = 0.1) -> None:
    """Give all trained tensors random values: at the start half of them get no gradient."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))


def gradients(net: Any) -> list[Tensor]:
    """The gradients of all trained tensors, zeros where none has arrived, and none of them afterwards."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = None
    return found


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """How far apart two lists of tensors are, as a share of the second."""
    a, b = (torch.cat([tensor.flatten().double() for tensor in tensors]) for tensors in (one, other))
    assert b.norm() > 0
    return float((a - b).norm() / b.norm())


def state(model: torch.nn.Module) -> dict[str, Any]:
    """All by which a model can be told to have changed: tensors, their places and flags, hooks, methods."""
    found: dict[str, Any] = {}
    for path, inner in model.named_modules():
        tensors = {**inner._parameters, **inner._buffers}
        found[path] = (
            inner.training,
            {name: (id(t), t.requires_grad, t.grad is None) for name, t in tensors.items() if t is not None},
            len(inner._forward_hooks),
            len(inner._forward_pre_hooks),
            sorted(name for name in vars(inner) if name in ("forward", "weight", "bias")),
        )
    return found


@contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Assert that a model is afterwards bitwise and in all flags what it was before."""
    import comfy.model_management

    before, values = state(model), {key: value.clone() for key, value in model.state_dict().items()}
    yield
    assert state(model) == before
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    assert not comfy.model_management.in_training
