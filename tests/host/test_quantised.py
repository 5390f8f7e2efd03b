"""Models in the host's quantised formats: patched live, in low VRAM and in files, through its own layers."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import STEPS, Host, Patched
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.harness.base import UNET, generate, unet_layout

pytestmark = pytest.mark.host

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
"""Format and options that the host quantises with, and what a file has to say of them."""

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
"""A convolution and a linear layer that are not quantised, and changed too."""


def float_unet() -> dict[str, Tensor]:
    """The smallest UNet in SD1.5's layout, 26 M parameters."""
    generator = torch.Generator().manual_seed(0)
    layout = unet_layout((1,), 1)
    return {
        name: torch.cat(list(generate(init, generator))).view(init.shape).half()
        for name, init in layout.items()
    }


def quantised(host: Host, name: str, weight: Tensor, key: str) -> dict[str, Tensor]:
    """A weight as the host's own code stores it."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    kind, options, said = FORMATS[name]
    packed = QuantizedTensor.from_float(
        weight.float(), QUANT_ALGOS[kind]["comfy_tensor_layout"], scale="recalculate", **options
    )
    mark = json.dumps({"format": kind, **said}).encode()
    layer = key.removesuffix(".weight")
    tensors = {**packed.state_dict(key), f"{layer}.comfy_quant": torch.tensor(list(mark), dtype=torch.uint8)}
    return {key: tensor.clone() for key, tensor in tensors.items()}


@pytest.fixture(scope="module")
def stored(host: Host) -> dict[str, Tensor]:
    """The tensors of a model with a layer in every format."""
    tensors = float_unet()
    for name, layer in LAYERS.items():
        tensors |= quantised(host, name, tensors.pop(f"{layer}.weight"), f"{layer}.weight")
    return tensors


@pytest.fixture(scope="module")
def source(host: Host, stored: dict[str, Tensor]) -> Iterator[str]:
    path = host.base / "models" / "diffusion_models" / "quantised.safetensors"
    save_file(stored, path)
    yield path.name
    path.unlink()


@pytest.fixture(scope="module")
def adapter(host: Host) -> Iterator[str]:
    """A LoRA and a LoKr on every one of the layers."""
    path = host.base / "models" / "loras" / "for_quantised.safetensors"
    torch.manual_seed(1)
    tensors: dict[str, Tensor] = {}
    layout = unet_layout((1,), 1)
    for layer in (*LAYERS.values(), *PLAIN):
        rows, columns, *kernel = layout[f"{layer}.weight"].shape
        tensors[f"diffusion_model.{layer}.lora_up.weight"] = torch.randn(rows, 4, *[1 for _ in kernel])
        tensors[f"diffusion_model.{layer}.lora_down.weight"] = torch.randn(4, columns, *kernel) / 200
    save_file(tensors, path)
    yield path.name
    path.unlink()


@pytest.fixture
def model(host: Host, source: str) -> Iterator[Patched]:
    import comfy.model_management

    yield Patched(host.nodes.UNETLoader().load_unet(source, "default")[0], None)
    comfy.model_management.unload_all_models()


def door(host: Host) -> Any:
    """The pack's one door to the host."""
    return importlib.import_module(f"{host.pack.__name__}.lycoris_nodes.host")


def module(patched: Patched, layer: str) -> Any:
    return patched.model.get_model_object(f"diffusion_model.{layer}")


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def packed(weight: Any) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in weight.state_dict("weight").items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype and found[key].shape == tensor.shape
        assert torch.equal(bits(found[key]), bits(tensor)), key


def dequantised(patched: Patched, layer: str) -> Tensor:
    return module(patched, layer).weight.to(torch.float32).dequantize().clone()


def wanted_values(host: Host, patched: Patched, stack: Any, layer: str) -> Tensor:
    """dequantise(W) + delta, by the library alone."""
    (entry,) = stack
    (name,) = (name for name in entry.adapter.layers if name.endswith(layer))
    return host.ops.patch_(dequantised(patched, layer), [(entry.adapter.layers[name], entry.strength)])


def latent(host: Host, patched: Patched) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    condition = [[torch.randn(1, 77, 768, generator=generator), {}]]
    (empty,) = host.nodes.EmptyLatentImage().generate(128, 128)
    (sampled,) = host.nodes.KSampler().sample(
        patched.model, 7, STEPS, 1.0, "euler", "normal", condition, condition, empty
    )
    return sampled["samples"].clone()


def test_shapes_are_those_of_the_weights_and_not_of_their_data(host: Host, model: Patched) -> None:
    shapes = door(host).weight_shapes(model.model)
    layout = unet_layout((1,), 1)
    for layer in LAYERS.values():
        assert shapes[f"diffusion_model.{layer}.weight"] == layout[f"{layer}.weight"].shape
    stored = module(model, LAYERS["nvfp4"]).weight.state_dict("weight")["weight"].shape
    assert tuple(stored) != layout[f"{LAYERS['nvfp4']}.weight"].shape


def test_a_loaded_weight_is_what_the_host_makes_of_the_exact_sum(
    host: Host, model: Patched, adapter: str
) -> None:
    import comfy.model_management
    import comfy.utils

    stack = host.stack((adapter, 0.8, 0.0))
    patched = host.apply(model, stack)
    assert len(patched.model.patches) == len(LAYERS) + len(PLAIN)
    before = {layer: packed(module(model, layer).weight) for layer in LAYERS.values()}
    values = {layer: wanted_values(host, model, stack, layer) for layer in LAYERS.values()}
    wanted = {}
    for layer, exact in values.items():
        seed = comfy.utils.string_to_seed(f"diffusion_model.{layer}.weight")
        wanted[layer] = packed(module(model, layer).set_weight(exact.clone(), seed=seed, return_weight=True))
    comfy.model_management.load_models_gpu([patched.model])
    for name, layer in LAYERS.items():
        assert_same(packed(module(patched, layer).weight), wanted[layer])
        found, base = dequantised(patched, layer), values[layer]
        error = ((found - base).norm() / base.norm()).item()
        print(f"{name}: {error:.3f} of the weight, by rounding")
        assert error < 0.25 and not torch.equal(bits(wanted[layer]["weight"]), bits(before[layer]["weight"]))
    comfy.model_management.unload_all_models()
    for layer, tensors in before.items():
        assert_same(packed(module(model, layer).weight), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_in_low_vram_the_layer_multiplies_with_the_exact_sum(
    host: Host, model: Patched, adapter: str, dtype: torch.dtype
) -> None:
    """The host unpacks the weight in every forward, in the input's dtype, and calls the patch then."""
    stack = host.stack((adapter, 0.8, 0.0))
    patched = host.apply(model, stack)
    patched.model.load(torch.device("cpu"), lowvram_model_memory=1)
    try:
        for name, layer in LAYERS.items():
            live = module(patched, layer)
            assert [type(one).__name__ for one in live.weight_function] == ["LowVramPatch"]
            exact = wanted_values(host, patched, stack, layer).double()
            x = torch.randn(5, exact.shape[1]).to(dtype)
            bias = 0.0 if live.bias is None else live.bias.to(dtype).double()
            error = live(x).double() - (x.double() @ exact.t() + bias)
            scale = x.double().norm(dim=1)[:, None] * exact.norm(dim=1)
            # Unpacked into the input's dtype, patched and rounded once, multiplied: three roundings.
            assert (error.abs() / scale).max() < 3 * torch.finfo(dtype).eps, name
    finally:
        patched.model.unpatch_model()


@pytest.fixture
def exported(host: Host) -> Iterator[Callable[..., Path]]:
    written: list[Path] = []

    def save(base: str, stack: object, dtype: str = "as in the file") -> Path:
        (report,) = host.run("LycorisSaveCheckpoint", base, stack, "quantised/out", dtype, strict=False)
        written.append(Path(report.splitlines()[-1]))
        return written[-1]

    yield save
    for path in written:
        path.unlink()


@pytest.mark.parametrize("place", ["diffusion_models", "checkpoints"])
@pytest.mark.parametrize("said_in", ["tensors", "metadata"])
def test_a_file_holds_what_the_live_model_does(
    host: Host,
    model: Patched,
    stored: dict[str, Tensor],
    adapter: str,
    exported: Callable[..., Path],
    place: str,
    said_in: str,
) -> None:
    import comfy.model_management

    stack = host.stack((adapter, 0.8, 0.0))
    prefix = UNET if place == "checkpoints" else ""
    tensors = {prefix + key: tensor for key, tensor in stored.items()}
    metadata = {"format": "pt"}
    if said_in == "metadata":
        marks = {key: tensors.pop(key) for key in list(tensors) if key.endswith(".comfy_quant")}
        layers = {
            key.removesuffix(".comfy_quant"): json.loads(bytes(mark.tolist())) for key, mark in marks.items()
        }
        metadata["_quantization_metadata"] = json.dumps({"layers": layers})
    path = host.base / "models" / place / "to_merge.safetensors"
    save_file(tensors, path, metadata)
    merged = load_file(exported(f"{place}/{path.name}", stack))
    assert merged.keys() == tensors.keys()
    patched = host.apply(model, stack)
    comfy.model_management.load_models_gpu([patched.model])
    for layer in LAYERS.values():
        own = {key: merged[f"{prefix}{layer}.{key}"] for key in packed(module(patched, layer).weight)}
        assert_same(own, packed(module(patched, layer).weight))
    changed = {f"{prefix}{layer}.weight" for layer in (*LAYERS.values(), *PLAIN)}
    changed |= {
        f"{prefix}{layer}.{name}" for layer in LAYERS.values() for name in ("weight_scale", "weight_scale_2")
    }
    for key in tensors.keys() - changed:
        assert torch.equal(bits(merged[key]), bits(tensors[key])), key
    path.unlink()


def test_the_exported_file_gives_the_live_latent(
    host: Host, model: Patched, source: str, adapter: str, exported: Callable[..., Path]
) -> None:
    stack = host.stack((adapter, 0.8, 0.0))
    path = exported(f"diffusion_models/{source}", stack, "float32")
    again = host.base / "models" / "diffusion_models" / "again.safetensors"
    path.replace(again)
    path.touch()
    live = latent(host, host.apply(model, stack))
    unpatched = latent(host, model)
    loaded = Patched(host.nodes.UNETLoader().load_unet(again.name, "default")[0], None)
    found = latent(host, loaded)
    effect = (live - unpatched).norm()
    assert effect > 0.02 * unpatched.norm()
    print(f"{((found - live).norm() / effect).item():.2e} of the effect")
    assert (found - live).norm() < 0.05 * effect
    again.unlink()
