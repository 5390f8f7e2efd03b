"""Models whose weights are packed: in the host's quantised formats, and as other packs have them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosting import Host, Patched
from torch import Tensor
from torch.nn import functional

from tests.harness.base import generate, unet_layout

FORMATS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "fp8": ("float8_e4m3fn", {}, {}),
    "fp8 e5m2": ("float8_e5m2", {}, {}),
    "nvfp4": ("nvfp4", {}, {}),
    "mxfp8": ("mxfp8", {}, {}),
    "int8": ("int8_tensorwise", {}, {}),
    "int8 by rows": ("int8_tensorwise", {"per_channel": True}, {}),
    "int8 rotated": (
        "int8_tensorwise",
        {"per_channel": True, "convrot": True, "convrot_groupsize": 64},
        {"convrot": True, "convrot_groupsize": 64},
    ),
    "int4 rotated": ("convrot_w4a4", {}, {}),
}
"""By name: the format, the options with which the host quantises to it, and what a file must say of it."""

BLOCK = "input_blocks.1.1.transformer_blocks.0"
LAYERS = {
    "fp8": f"{BLOCK}.attn1.to_q",
    "fp8 e5m2": f"{BLOCK}.attn1.to_k",
    "nvfp4": f"{BLOCK}.attn1.to_v",
    "mxfp8": f"{BLOCK}.attn1.to_out.0",
    "int8": f"{BLOCK}.attn2.to_q",
    "int8 by rows": f"{BLOCK}.ff.net.0.proj",
    "int8 rotated": f"{BLOCK}.ff.net.2",
    "int4 rotated": "input_blocks.1.0.emb_layers.1",
}
"""One linear layer of the model for every format."""

PLAIN = "input_blocks.1.0.in_layers.2", f"{BLOCK}.attn2.to_v"
"""A convolution and a linear layer that stay plain floats. The adapter changes them as well."""


def float_unet() -> dict[str, Tensor]:
    """The smallest UNet in SD1.5's layout, 26 M parameters."""
    generator = torch.Generator().manual_seed(0)
    layout = unet_layout((1,), 1)
    return {
        name: torch.cat(list(generate(init, generator))).view(init.shape).half()
        for name, init in layout.items()
    }


def quantised(host: Host, name: str, weight: Tensor, key: str) -> dict[str, Tensor]:
    """The tensors in which the host's own code stores the weight."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    kind, options, said = FORMATS[name]
    if kind not in QUANT_ALGOS:
        pytest.skip(f"this host has no {kind}")
    packed = QuantizedTensor.from_float(
        weight.float(), QUANT_ALGOS[kind]["comfy_tensor_layout"], scale="recalculate", **options
    )
    mark = json.dumps({"format": kind, **said}).encode()
    layer = key.removesuffix(".weight")
    tensors = {**packed.state_dict(key), f"{layer}.comfy_quant": torch.tensor(list(mark), dtype=torch.uint8)}
    return {key: tensor.clone() for key, tensor in tensors.items()}


def packed_unet(host: Host) -> dict[str, Tensor]:
    """The smallest UNet with one layer in each format."""
    tensors = float_unet()
    for name, layer in LAYERS.items():
        tensors |= quantised(host, name, tensors.pop(f"{layer}.weight"), f"{layer}.weight")
    return tensors


def door(host: Host) -> Any:
    """The pack's door to the weights of the host's models."""
    return host.module("lycoris_nodes.host.weights")


def module(patched: Patched, layer: str) -> Any:
    return patched.model.get_model_object(f"diffusion_model.{layer}")


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def packed(weight: Any) -> dict[str, Tensor]:
    """Copies of the tensors of which a quantised weight consists."""
    return {key: tensor.clone() for key, tensor in weight.state_dict("weight").items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Assert that two sets of tensors are equal byte by byte."""
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype and found[key].shape == tensor.shape
        assert torch.equal(bits(found[key]), bits(tensor)), key


class GgufLikeTensor(torch.Tensor):
    """Packed data that claim another shape and have a type with a name, as ComfyUI-GGUF's tensors do."""

    tensor_type = SimpleNamespace(name="Q4_K")

    @property
    def shape(self) -> torch.Size:
        rows, columns = torch.Tensor.size(self)
        return torch.Size((rows, columns - 1))


def gguf_like(rows: Tensor) -> Any:
    """A stand-in for ComfyUI-GGUF's layer, because ComfyUI-GGUF is not installed for tests.

    The layer is the host's `Linear` with a `cast_bias_weight` of its own that unpacks in every pass. It has
    what the pack uses of ComfyUI-GGUF's layer, and nothing else.
    """
    import comfy.ops

    class Linear(comfy.ops.manual_cast.Linear):
        def cast_bias_weight(
            self, x: Any = None, dtype: Any = None, device: Any = None, bias_dtype: Any = None
        ) -> tuple[Tensor, Tensor]:
            packed = self.weight.as_subclass(Tensor)
            # The first byte of a row is there only so that the data have another shape than the weight.
            weight = (packed[:, 1:].float() - 128) / 256
            dtype = dtype or x.dtype
            return weight.to(dtype), self.bias.to(dtype)

        def forward_comfy_cast_weights(self, x: Tensor) -> Tensor:
            return functional.linear(x, *self.cast_bias_weight(x))

    layer = Linear(rows.shape[1] - 1, len(rows))
    layer.bias = torch.nn.Parameter(torch.randn(len(rows)), requires_grad=False)
    layer.weight = torch.nn.Parameter(rows.as_subclass(GgufLikeTensor), requires_grad=False)
    return layer
