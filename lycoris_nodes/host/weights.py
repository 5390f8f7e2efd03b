"""The weights of models that the host has loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy.quant_ops import QuantizedTensor as QuantizedTensor
from comfy.weight_adapter.bypass import BypassForwardHook
from torch import Tensor, nn


def patcher_of(patchable: Any) -> Any:
    """The host's patcher of a model or text encoder: a MODEL is one, a CLIP has one."""
    return getattr(patchable, "patcher", patchable)


def layer_of(patcher: Any, path: str) -> Any:
    """The module at a path of the model, None where there is none."""
    try:
        found = comfy.utils.get_attr(patcher.model, path)
    except AttributeError:
        return None
    return found if isinstance(found, torch.nn.Module) else None


def parameter_of(patcher: Any, key: str) -> Any:
    """What the model holds under a key. None for a key that only its state dict has: other packs add some."""
    layer, _, name = key.rpartition(".")
    try:
        return getattr(comfy.utils.get_attr(patcher.model, layer), name)
    except AttributeError:
        return None


def weight_shapes(patcher: Any) -> dict[str, tuple[int, ...]]:
    """Every key of a loaded model with its shape, that of a quantised weight as if it were unpacked."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, value in patcher.model_state_dict().items():
        # The parameter itself: the state dict of a quantised weight holds its packed data.
        weight = parameter_of(patcher, key) if key.endswith(".weight") else None
        shapes[key] = tuple((value if weight is None else weight).shape)
    return shapes


def plain(weight: Any) -> Any:
    """A weight as floats. The host hands over a quantised one where its layer cannot unpack it itself."""
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


def weight_of(patcher: Any, key: str) -> torch.Tensor:
    """A weight or bias of a loaded model as floats, without what patches will make of it."""
    return plain(comfy.utils.get_attr(patcher.model, key)).detach().float().cpu()


def own_weights(patchable: Any) -> tuple[dict[str, torch.Tensor], list[str]] | None:
    """The weights of a VAE or text encoder, and how it computes, in words.

    The weights are without what other users of the same module have patched into them, and without those
    that nothing reads. None where this one has patches, hooks or injections of its own.
    """
    patcher = patcher_of(patchable)
    own = ("patches", "injections", "hook_patches", "forced_hooks", "weight_wrapper_patches")
    # The host sets the dtype that is computed in as if it patched the module.
    settings = dict(patcher.object_patches)
    if any(getattr(patcher, name, None) for name in own):
        return None
    if not all(isinstance(value, torch.dtype) for value in settings.values()):
        return None
    kept = patcher.backup
    weights: dict[str, torch.Tensor] = patcher.model_state_dict()
    # Files have none, so that the values are whatever was in memory.
    unused = {
        f"{path}.transformer.text_projection.weight"
        for path, module in patcher.model.named_modules()
        if getattr(module, "return_projected_pooled", True) is False
    }
    whole = {
        key: kept[key].weight if key in kept else weight
        for key, weight in weights.items()
        if key not in unused
    }
    return whole, [f"{name} {value}" for name, value in sorted(settings.items())]


def key_patches(patcher: Any) -> dict[str, list[Any]]:
    """Of each key the original weight with the host's function that unpacks it, then its patches."""
    return patcher.get_key_patches()


def patched_weight(parts: Sequence[Any], key: str) -> torch.Tensor:
    """A weight in float32 on the CPU, unpacked and with its patches, from what `key_patches` gives of it."""
    (weight, convert), *patches = parts
    values = plain(convert(weight.detach(), inplace=False)).to("cpu", torch.float32, copy=True)
    if patches:
        values = comfy.lora.calculate_weight(patches, values, key, intermediate_dtype=torch.float32)
    return values


def compute_device() -> torch.device:
    """The device that the host computes on."""
    return comfy.model_management.get_torch_device()


class HostReader:
    """Reads a layer's weight and bias as its forward pass sees them: unpacked, with the host's patches.

    It is the `Reader` of a `Bypass`.
    """

    def forward(self, module: Any) -> Callable[..., torch.Tensor]:
        """The layer's own `forward`, below the host's own bypass, which replaces that method."""
        found: Any = module.forward
        while isinstance(hook := getattr(found, "__self__", None), BypassForwardHook):
            found = hook.original_forward
        return found

    def weight(self, module: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The weight that acts on the layer's input, (O, I, *kernel), in a dtype and on a device."""
        weight = self._read(module, dtype, device)[0]
        # The layer multiplies its input with these factors (I,), and its weight is stored divided by them.
        scale = getattr(module, "pre_quant_scale", None)
        return weight if scale is None else weight * scale.to(device, dtype)

    def bias(self, module: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        return None if module.bias is None else self._read(module, dtype, device)[1]

    def _read(
        self, module: Any, dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if hasattr(module, "cast_bias_weight"):  # ComfyUI-GGUF
            weight, bias, *_ = module.cast_bias_weight(dtype=dtype, device=device, bias_dtype=dtype)
        elif hasattr(module, "comfy_cast_weights"):
            weight, bias, stream = comfy.ops.cast_bias_weight(
                module, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
            )
            # On a GPU the host may return a buffer that it overwrites with the next layer.
            copy = not comfy.model_management.is_device_cpu(device)
            held, beside = weight, bias
            weight = plain(weight).to(dtype, copy=copy)
            bias = None if bias is None else bias.to(dtype, copy=copy)
            comfy.ops.uncast_bias_weight(module, held, beside, stream)
        else:
            weight, bias = plain(module.weight), module.bias
        return tuple(  # type: ignore[return-value]
            None if value is None else value.detach().to(device, dtype) for value in (weight, bias)
        )


def fetched(module: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weight that a layer multiplies with, unpacked, patched, in a dtype and on a device. Never kept."""
    if hasattr(module, "cast_bias_weight"):  # ComfyUI-GGUF
        layer: Any = module
        return plain(layer.cast_bias_weight(dtype=dtype, device=device, bias_dtype=dtype)[0])
    weight, bias, stream = comfy.ops.cast_bias_weight(
        module, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
    )
    comfy.ops.uncast_bias_weight(module, weight, bias, stream)
    return plain(weight).to(dtype)
