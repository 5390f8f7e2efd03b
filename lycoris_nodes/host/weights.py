"""The weights of models that the host has loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.quant_ops import QuantizedTensor as QuantizedTensor
from comfy.weight_adapter.bypass import BypassForwardHook
from torch import nn

from ...lycoris_ops import LycorisError, Shape, phrase

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""Messages of allocators that raise a plain RuntimeError when memory runs out (CPU, MPS, XPU)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the computer, has no memory left."""
    # The host has plain Exception in this place where torch has no such error.
    kinds = {MemoryError, torch.cuda.OutOfMemoryError, comfy.model_management.OOM_EXCEPTION} - {Exception}
    return isinstance(error, tuple(kinds)) or any(said in str(error).lower() for said in OUT_OF_MEMORY)


def patcher_of(patchable: Any) -> Any:
    """The host's patcher of a model or text encoder: a MODEL is one, a CLIP has one."""
    return getattr(patchable, "patcher", patchable)


def loaded_from(patchable: Any) -> str | None:
    """The path of the file that the host has loaded a model from; None if it does not say."""
    init: Any = getattr(patcher_of(patchable), "cached_patcher_init", None)
    # The arguments of its loader. Those of other packs may take none.
    first = init[1][:1] if init else ()
    return next((argument for argument in first if isinstance(argument, str)), None)


def held_at(patcher: Any, path: str) -> Any:
    """What the model holds at a path. None for a key that only its state dict has: other packs add some."""
    try:
        return comfy.utils.get_attr(patcher.model, path)
    except AttributeError:
        return None


def layer_of(patcher: Any, path: str) -> Any:
    """The module at a path of the model, None where there is none."""
    module = held_at(patcher, path)
    return module if isinstance(module, nn.Module) else None


def weight_shapes(*patchables: Any) -> dict[str, Shape]:
    """The shapes of all keys of some models and text encoders. Arguments that are None are skipped.

    A quantised weight has the shape of its unpacked values.
    """
    shapes: dict[str, Shape] = {}
    for patcher in (patcher_of(patchable) for patchable in patchables if patchable is not None):
        for key, value in patcher.model_state_dict().items():
            # The parameter itself: the state dict of a quantised weight holds its packed data.
            weight = held_at(patcher, key) if key.endswith(".weight") else None
            shapes[key] = tuple((value if weight is None else weight).shape)
    return shapes


def plain(weight: Any) -> Any:
    """A weight as floats. The host hands over a quantised one where its layer cannot unpack it itself."""
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


def own_weights(patchable: Any) -> tuple[dict[str, torch.Tensor], list[str]] | None:
    """The weights of a VAE or text encoder, and how it computes, in words.

    Patches that others have put into the same module are taken out, and weights that nothing reads are left
    out. None if `patchable` itself has patches, hooks or injections.
    """
    patcher = patcher_of(patchable)
    own = ("patches", "injections", "hook_patches", "forced_hooks", "weight_wrapper_patches")
    # The host sets its compute dtype as a patch of the module.
    settings = dict(patcher.object_patches)
    if any(getattr(patcher, name, None) for name in own):
        return None
    if not all(isinstance(value, torch.dtype) for value in settings.values()):
        return None
    kept = patcher.backup
    weights: dict[str, torch.Tensor] = patcher.model_state_dict()
    # Files lack these weights, so their values are whatever was in memory.
    unused = {
        f"{path}.transformer.text_projection.weight"
        for path, module in patcher.model.named_modules()
        if getattr(module, "return_projected_pooled", True) is False
    }
    held = {
        key: kept[key].weight if key in kept else weight
        for key, weight in weights.items()
        if key not in unused
    }
    return held, [f"{name} {value}" for name, value in sorted(settings.items())]


def merge_obstacle(patcher: Any, key: str) -> str | None:
    """Why the host cannot merge a change into this weight correctly, in words; None where it can.

    Packed weights are an obstacle, but not with ComfyUI-GGUF's own patcher, which unpacks a weight in
    every forward pass and then calls the patches (city96/ComfyUI-GGUF, ops.py and nodes.py).
    """
    weight = held_at(patcher, key)
    if weight is None:
        return None
    if not weight.is_floating_point() and type(patcher).__name__ != "GGUFModelPatcher":
        return phrase("R-packed-comfyui-cannot-patch", dtype=weight.dtype, name=type(weight).__name__)
    if held_at(patcher, f"{key.removesuffix('.weight')}.pre_quant_scale") is not None:
        return phrase("R-layer-multiplies-input-factors-stored")
    return None


def compute_device() -> torch.device:
    """The device that the host computes on."""
    return comfy.model_management.get_torch_device()


def below_hooks(patcher: Any, path: str) -> dict[str, torch.Tensor]:
    """The layer's weight and bias without what the host's LoRA hooks add to them now, as the host keeps them.

    They are by name; {} where no hook acts on the layer.
    """
    keys = {name: f"{path}.{name}" for name in ("weight", "bias")}
    return {name: patcher.hook_backup[key][0] for name, key in keys.items() if key in patcher.hook_backup}


class HostReader:
    """Reads a layer's weight and bias as its forward pass sees them: unpacked, with the host's patches.

    It is the `Reader` of a `Bypass`. What the host's LoRA hooks add is left out: `below` is as `below_hooks`
    returns it.
    """

    def __init__(self, below: Mapping[str, torch.Tensor]) -> None:
        self._below = below

    def forward(self, module: Any) -> Callable[..., torch.Tensor]:
        """The layer's own `forward`, below the host's own bypass, which replaces that method."""
        forward: Any = module.forward
        while isinstance(hook := getattr(forward, "__self__", None), BypassForwardHook):
            forward = hook.original_forward
        return forward

    def weight(self, module: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The weight that acts on the layer's input, (O, I, *kernel), in a dtype and on a device."""
        if (kept := self._below.get("weight")) is not None:
            weight = plain(kept).to(device, dtype)
        else:
            weight = cast_of(module, dtype, device)[0]
        # The layer multiplies its input by these factors (I,), and its weight is stored divided by them.
        scale = getattr(module, "pre_quant_scale", None)
        return weight if scale is None else weight * scale.to(device, dtype)

    def bias(self, module: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        if (kept := self._below.get("bias")) is not None:
            return kept.to(device, dtype)
        return None if module.bias is None else cast_of(module, dtype, device)[1]


def cast_of(module: Any, dtype: torch.dtype, device: torch.device, *, kept: bool = True) -> tuple[Any, Any]:
    """The weight and bias that a layer computes with: unpacked, patched, in a dtype and on a device.

    Unless `kept`, they may be in a buffer that the host overwrites for the next layer.
    """
    if hasattr(module, "cast_bias_weight"):  # ComfyUI-GGUF
        weight, bias, *_ = module.cast_bias_weight(dtype=dtype, device=device, bias_dtype=dtype)
    elif hasattr(module, "comfy_cast_weights"):
        held, beside, stream = comfy.ops.cast_bias_weight(
            module, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
        )
        copy = kept and not comfy.model_management.is_device_cpu(device)
        weight = plain(held).to(dtype, copy=copy)
        bias = None if beside is None else beside.to(dtype, copy=copy)
        comfy.ops.uncast_bias_weight(module, held, beside, stream)
    else:
        weight, bias = module.weight, module.bias
    weight, bias = (
        None if value is None else plain(value).detach().to(device, dtype) for value in (weight, bias)
    )
    return weight, bias


class LoadedWeights:
    """The weights of models and text encoders, with the patches that are on them; see `Weights`.

    They are read one at a time: no weight is changed and no model is loaded.
    """

    def __init__(self, name: str, *patchables: Any) -> None:
        self.name = name
        patchers = [patcher_of(patchable) for patchable in patchables if patchable is not None]
        # A state dict also has keys that its model does not hold, such as the scale of a quantised weight.
        self._owners = {
            key: patcher
            for patcher in patchers
            for key in patcher.model_state_dict()
            if held_at(patcher, key) is not None
        }
        shapes = weight_shapes(*patchers)
        self.shapes: Mapping[str, Shape] = {key: shapes[key] for key in self._owners}

    def original(self, key: str) -> torch.Tensor | None:
        """A weight in float32 on the CPU, unpacked and without its patches; None where it cannot be read."""
        patcher = self._owners[key]
        if merge_obstacle(patcher, key) is not None:
            return None
        weight = self._stored(key).detach()
        _, _, unpack = comfy.model_patcher.get_key_weight(patcher.model, key)
        values = plain(weight if unpack is None else unpack(weight, inplace=False))
        return values.to("cpu", torch.float32, copy=True)

    def read(self, key: str) -> torch.Tensor:
        """A weight in float32 on the CPU, unpacked and with its patches."""
        patcher, values = self._owners[key], self.original(key)
        if values is None:
            raise LycorisError("E-loaded-weight-unreadable", key=key, got=merge_obstacle(patcher, key))
        if patches := patcher.patches.get(key):
            values = comfy.lora.calculate_weight(patches, values, key, intermediate_dtype=torch.float32)
        return values

    def reads(self, key: str) -> bool:
        return key.endswith(".weight") or bool(self._stored(key).is_floating_point())

    def grain(self, key: str) -> torch.dtype | None:
        if self._owners[key].patches.get(key):
            # The sum with its patches is formed in float32.
            return torch.float32
        weight = self._stored(key)
        return weight.dtype if plain(weight) is weight and weight.is_floating_point() else None

    def _stored(self, key: str) -> Any:
        """A weight without its patches. The host keeps it aside while they are on the model."""
        patcher = self._owners[key]
        if key in patcher.hook_backup:
            return patcher.hook_backup[key][0]
        return patcher.backup[key].weight if key in patcher.backup else held_at(patcher, key)


def connected_weights(model: Any, clip: Any) -> LoadedWeights | None:
    """The weights of the model and text encoder that are connected to a node; None if neither is."""
    return None if model is None and clip is None else LoadedWeights(phrase("R-connected-model"), model, clip)
