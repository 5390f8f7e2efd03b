"""This pack ("ours") and its peers behind one interface: prepare a stack for a weight, then patch the weight.

Each function takes a stack and a weight to prepare for, and returns a `Patch`. Preparing is not timed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import lycoris_ops as lyc

from .cases import Factors

# lycoris-lora picks a kernel by what is installed. What is measured here is its torch code.
os.environ["LYCORIS_KERNEL_BACKEND"] = "torch"

Stack = list[tuple[str, Factors, float]]
"""(algorithm, tensors by suffix, strength) of each adapter."""
Patch = Callable[[Tensor], Tensor]
"""Patches a weight, in place where the peer can, and returns it."""


def ours(stack: Stack, weight: Tensor) -> Patch:
    layers = [(lyc.ALGORITHMS[kind].load(tensors), strength) for kind, tensors, strength in stack]
    plan = lyc.PatchPlan.build(weight.shape, weight.dtype, weight.device, layers)
    return lambda target: plan.apply_(target, plan.tensors, plan.strengths)


def comfyui(stack: Stack, weight: Tensor) -> Patch:
    import comfy.lora
    from comfy.weight_adapter import adapters

    loaders = {adapter.name: adapter for adapter in adapters}
    patches: list[Any] = []
    for kind, tensors, strength in stack:
        named = {f"x.{key}": tensor for key, tensor in tensors.items()}
        adapter = loaders[kind].load("x", named, tensors["alpha"].item(), None, set())
        patches.append((strength, adapter, 1.0, None, None))
    return lambda target: comfy.lora.calculate_weight(patches, target, "x")


def lycoris(stack: Stack, weight: Tensor) -> Patch:
    from lycoris.functional import locon, loha, lokr

    calls: list[tuple[Callable[[], Tensor], float]] = []
    for kind, tensors, strength in stack:
        t = {key: tensor.to(weight.device) for key, tensor in tensors.items()}
        alpha = t["alpha"].item()
        if kind == "lora":
            down, up = t["lora_down.weight"], t["lora_up.weight"]
            gamma = alpha / down.shape[0]
            calls.append((lambda d=down, u=up, g=gamma: locon.diff_weight(d, u, None, gamma=g), strength))
        elif kind == "loha":
            parts = [t[f"hada_w{n}_{side}"] for n in (1, 2) for side in "ba"]
            gamma = alpha / parts[0].shape[0]
            calls.append((lambda p=parts, g=gamma: loha.diff_weight(*p, None, None, gamma=g), strength))
        else:
            factors = (t["lokr_w1"], None, None, None, t["lokr_w2_a"], t["lokr_w2_b"], None)
            # Here lycoris-lora divides gamma by the rank itself.
            calls.append((lambda f=factors, a=alpha: lokr.diff_weight(*f, gamma=a), strength))

    def patch(target: Tensor) -> Tensor:
        for call, strength in calls:
            target.add_(call().view(target.shape).to(target.dtype), alpha=strength)
        return target

    return patch


def peft(stack: Stack, weight: Tensor) -> Patch:
    """PEFT's own delta of each adapter, added to the weight as PEFT's `merge` does."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig
    from peft.tuners.loha.layer import Linear as Loha
    from peft.tuners.lokr.layer import Linear as Lokr
    from peft.tuners.lora.layer import Linear as Lora

    made: list[tuple[Any, str, float]] = []
    for slot, (kind, tensors, strength) in enumerate(stack):
        name = f"a{slot}"
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        module.to_empty(device=weight.device)
        alpha = tensors["alpha"].item()
        if kind == "lora":
            rank = tensors["lora_down.weight"].shape[0]
            layer: Any = Lora(module, name, LoraConfig(r=rank), r=rank, lora_alpha=alpha)
            layer.lora_A[name].weight.data = tensors["lora_down.weight"].to(weight.device)
            layer.lora_B[name].weight.data = tensors["lora_up.weight"].to(weight.device)
        elif kind == "loha":
            rank = tensors["hada_w1_b"].shape[0]
            layer = Loha(module, name, config=LoHaConfig(r=rank, alpha=alpha), r=rank, alpha=alpha)
            for key in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"):
                getattr(layer, key)[name].data = tensors[key].to(weight.device)
        else:
            rank = tensors["lokr_w2_b"].shape[0]
            layer = Lokr(module, name, config=LoKrConfig(r=rank, alpha=alpha), r=rank, alpha=alpha)
            layer.lokr_w1[name] = nn.Parameter(tensors["lokr_w1"].to(weight.device))
            layer.lokr_w2_a[name] = nn.Parameter(tensors["lokr_w2_a"].to(weight.device))
            layer.lokr_w2_b[name] = nn.Parameter(tensors["lokr_w2_b"].to(weight.device))
        made.append((layer, name, strength))

    @torch.no_grad()
    def patch(target: Tensor) -> Tensor:
        for layer, name, strength in made:
            target.add_(layer.get_delta_weight(name).to(target.dtype), alpha=strength)
        return target

    return patch


PEERS: dict[str, Callable[[Stack, Tensor], Patch]] = {
    "ours": ours,
    "ComfyUI": comfyui,
    "lycoris-lora": lycoris,
    "PEFT": peft,
}
