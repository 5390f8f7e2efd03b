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

from .cases import Factors, Stack

# lycoris-lora picks a kernel by what is installed. What is measured here is its torch code.
os.environ["LYCORIS_KERNEL_BACKEND"] = "torch"

Patch = Callable[[Tensor], Tensor]
"""Patches a weight, in place where the peer can, and returns it."""


def plan_of(stack: Stack, weight: Tensor) -> lyc.PatchPlan:
    layers = [(lyc.ALGORITHMS[kind].load(tensors), strength) for kind, tensors, strength in stack]
    return lyc.PatchPlan.build(weight.shape, weight.device, layers)


def in_comfyui(kind: str, tensors: Factors) -> Any:
    """The host's own adapter of these tensors."""
    from comfy.weight_adapter import adapters

    named = {f"x.{key}": tensor for key, tensor in tensors.items()}
    alpha = tensors["alpha"].item() if "alpha" in tensors else None
    return {one.name: one for one in adapters}[kind].load("x", named, alpha, None, set())


def ours(stack: Stack, weight: Tensor) -> Patch:
    plan = plan_of(stack, weight)
    return lambda target: plan.apply_(target, plan.tensors, plan.strengths)


def comfyui(stack: Stack, weight: Tensor) -> Patch:
    import comfy.lora

    patches = [(strength, in_comfyui(kind, tensors), 1.0, None, None) for kind, tensors, strength in stack]
    return lambda target: comfy.lora.calculate_weight(patches, target, "x")


def _adding(changes: list[tuple[Callable[[], Tensor], float]]) -> Patch:
    """Adds each change to the weight, in the weight's dtype."""

    @torch.no_grad()
    def patch(target: Tensor) -> Tensor:
        for change, strength in changes:
            target.add_(change().view(target.shape).to(target.dtype), alpha=strength)
        return target

    return patch


def lycoris(stack: Stack, weight: Tensor) -> Patch:
    from lycoris.functional import locon, loha, lokr

    def change(kind: str, tensors: Factors) -> Callable[[], Tensor]:
        t = {key: tensor.to(weight.device) for key, tensor in tensors.items()}
        alpha = t["alpha"].item()
        if kind == "lora":
            down, up = t["lora_down.weight"], t["lora_up.weight"]
            return lambda: locon.diff_weight(down, up, None, gamma=alpha / len(down))
        if kind == "loha":
            parts = [t[f"hada_w{n}_{side}"] for n in (1, 2) for side in "ba"]
            return lambda: loha.diff_weight(*parts, None, None, gamma=alpha / len(parts[0]))
        factors = (t["lokr_w1"], None, None, None, t["lokr_w2_a"], t["lokr_w2_b"], None)
        # Here lycoris-lora divides gamma by the rank itself.
        return lambda: lokr.diff_weight(*factors, gamma=alpha)

    return _adding([(change(kind, tensors), strength) for kind, tensors, strength in stack])


def peft(stack: Stack, weight: Tensor) -> Patch:
    """PEFT's own delta of each adapter, added to the weight as PEFT's `merge` does."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig
    from peft.tuners.loha.layer import Linear as Loha
    from peft.tuners.lokr.layer import Linear as Lokr
    from peft.tuners.lora.layer import Linear as Lora

    kinds: dict[str, tuple[Any, Any, str, str]] = {
        "lora": (Lora, LoraConfig, "lora_alpha", "lora_down.weight"),
        "loha": (Loha, LoHaConfig, "alpha", "hada_w1_b"),
        "lokr": (Lokr, LoKrConfig, "alpha", "lokr_w2_b"),
    }

    def change(kind: str, tensors: Factors) -> Callable[[], Tensor]:
        layer_class, config, alpha_name, ranked = kinds[kind]
        rank, alpha = len(tensors[ranked]), {alpha_name: tensors["alpha"].item()}
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        module.to_empty(device=weight.device)
        layer = layer_class(module, "a", config(r=rank, **alpha), r=rank, **alpha)
        if kind == "lora":
            layer.lora_A["a"].weight.data = tensors["lora_down.weight"].to(weight.device)
            layer.lora_B["a"].weight.data = tensors["lora_up.weight"].to(weight.device)
        for key in tensors.keys() - {"alpha", "lora_down.weight", "lora_up.weight"}:
            getattr(layer, key)["a"] = nn.Parameter(tensors[key].to(weight.device))
        return lambda: layer.get_delta_weight("a")

    return _adding([(change(kind, tensors), strength) for kind, tensors, strength in stack])


PEERS: dict[str, Callable[[Stack, Tensor], Patch]] = {
    "ours": ours,
    "ComfyUI": comfyui,
    "lycoris-lora": lycoris,
    "PEFT": peft,
}
