"""Patches, which the host adds to the weights of a model when it loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.model_management
import torch
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter import WeightAdapterBase as WeightAdapterBase

from ...lycoris_ops import LycorisError, dtype_name
from .weights import held_at, layer_of, merge_obstacle, patcher_of


def add_patches(patched: Any, patches: Mapping[str, WeightAdapterBase]) -> None:
    """Hand one patch per weight to the host, which applies it when it loads the model.

    Raises LycorisError where the host cannot merge correctly (see `merge_obstacle`), and where it refuses
    a patch, which it would otherwise drop in silence.
    """
    for key in patches:
        reason = merge_obstacle(patcher_of(patched), key)
        if reason is not None:
            raise LycorisError("E-weight-not-merged", key=key, got=reason)
    taken = set(patched.add_patches(patches, 1.0, 1.0))
    refused = sorted(set(patches) - taken)
    if refused:
        raise LycorisError(
            "E-host-refused-change", key=refused[0], refused=len(refused), changes=len(patches)
        )


def attach_metadata(patched: Any, metadata: Mapping[str, str]) -> None:
    """Keep a file's metadata with the model, where the host's LoRA loaders keep it for other nodes.

    One of these nodes reads `reference_downscale_factor` of an IC-LoRA of LTX there.
    """
    patcher_of(patched).set_attachments("lora_metadata", dict(metadata))


def enlarged_by_patches(patcher: Any, key: str) -> bool:
    """Whether the patches that a weight already has give it another shape."""
    weight, patches = held_at(patcher, key), patcher.patches.get(key, [])
    return bool(patches) and tuple(comfy.lora.calculate_shape(patches, weight, key)) != tuple(weight.shape)


def merge_loss(patcher: Any, key: str) -> str | None:
    """Why a merge into this weight loses precision or is repeated in every pass; None for plain floats."""
    weight = held_at(patcher, key)
    if not isinstance(weight, torch.Tensor):
        return None
    kind = getattr(weight, "tensor_type", None)
    if kind is not None:  # ComfyUI-GGUF's tensors
        name = getattr(kind, "name", str(kind))
        plain_float = name in ("F32", "F16", "BF16")
        return None if plain_float else f"kept as GGUF {name}, and a merge would be added again in every step"
    if isinstance(weight, QuantizedTensor):
        layer = layer_of(patcher, key.rpartition(".")[0])
        name = getattr(layer, "quant_format", None) or type(weight).__name__
    # A float8 weight without scales is an ordinary tensor.
    elif weight.dtype.itemsize == 1:
        name = dtype_name(weight.dtype)
    else:
        return None
    return f"kept as {name}, and a merge would round the sum to that format"


def merges_in_every_pass(patcher: Any) -> bool:
    """Whether the host is short of memory and would merge again each time a weight is used.

    It does not do so on a CPU, nor with "dynamic VRAM", where weights are loaded one by one as they are used.
    """
    dynamic = getattr(patcher, "is_dynamic", lambda: False)()
    if dynamic or comfy.model_management.is_device_cpu(patcher.load_device):
        return False
    # The host sets `model_lowvram` on a model that it has loaded only in part.
    states = comfy.model_management.VRAMState
    return (
        comfy.model_management.vram_state in (states.LOW_VRAM, states.NO_VRAM)
        or bool(getattr(patcher.model, "model_lowvram", False))
        or patcher.model_size() > comfy.model_management.get_total_memory(patcher.load_device)
    )
