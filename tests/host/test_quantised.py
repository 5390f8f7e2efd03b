"""Models in the host's quantised formats: patched live, in low VRAM, and in files."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import STEPS, Host, Patched, load, model_of, unload
from kinds import kinds, lora
from packed import (
    FORMATS,
    LAYERS,
    PLAIN,
    assert_same,
    bits,
    door,
    float_unet,
    module,
    packed,
    packed_unet,
    quantised,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.harness.allocations import MemoryRunsOut
from tests.harness.base import UNET, unet_layout

pytestmark = pytest.mark.host
NEAR = 1e-3
"""The largest error of a latent, as a share of the effect of the adapter."""


@pytest.fixture(scope="module")
def stored(host: Host) -> dict[str, Tensor]:
    return packed_unet(host)


@pytest.fixture(scope="module")
def source(host: Host, stored: dict[str, Tensor]) -> Iterator[str]:
    """The name of a file with these tensors in the host."""
    path = host.base / "models" / "diffusion_models" / "quantised.safetensors"
    save_file(stored, path)
    yield path.name
    path.unlink()


@pytest.fixture(scope="module")
def adapter(host: Host) -> Iterator[str]:
    """The name of a file in the host with a LoRA for every layer in LAYERS and PLAIN."""
    path = host.base / "models" / "loras" / "for_quantised.safetensors"
    # A fixture of a module is made before the seed of a test is set.
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
    """The model that the host loads from the file."""

    yield host.unet(source)
    unload()


def dequantised(patched: Patched, layer: str) -> Tensor:
    """The values of a layer's quantised weight, in float32."""
    return module(patched, layer).weight.to(torch.float32).dequantize().clone()


def wanted_values(host: Host, patched: Patched, stack: Any, layer: str) -> Tensor:
    """dequantise(W) + delta, by the library alone."""
    (entry,) = stack
    (name,) = (name for name in entry.adapter.layers if name.endswith(layer))
    return host.ops.patch_(dequantised(patched, layer), [(entry.adapter.layers[name], entry.strength)])


def test_shapes_are_those_of_the_weights_and_not_of_their_data(host: Host, model: Patched) -> None:
    """NVFP4 stores two values in a byte, so its data have another shape than the weight."""
    shapes = door(host).weight_shapes(model.model)
    layout = unet_layout((1,), 1)
    for layer in LAYERS.values():
        assert shapes[f"diffusion_model.{layer}.weight"] == layout[f"{layer}.weight"].shape
    # The data must have another shape, or the test would show nothing.
    stored = module(model, LAYERS["nvfp4"]).weight.state_dict("weight")["weight"].shape
    assert tuple(stored) != layout[f"{LAYERS['nvfp4']}.weight"].shape


def test_a_loaded_weight_is_what_the_host_makes_of_the_exact_sum(
    host: Host, model: Patched, adapter: str
) -> None:
    """A patched weight must equal the host's own quantisation of the exact sum, byte by byte.

    The host's seed for the key of the weight is used for both.
    """
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
    load(patched.model)
    for name, layer in LAYERS.items():
        assert_same(packed(module(patched, layer).weight), wanted[layer])
        found, base = dequantised(patched, layer), values[layer]
        error = ((found - base).norm() / base.norm()).item()
        print(f"{name}: {error:.3f} of the weight, by rounding")
        assert error < 0.25 and not torch.equal(bits(wanted[layer]["weight"]), bits(before[layer]["weight"]))
    unload()
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


def test_a_quantised_weight_without_its_scale_is_named(
    host: Host,
    stored: dict[str, Tensor],
    adapter: str,
    exported: Callable[..., Path],
    model_file: Callable[..., Path],
) -> None:
    layer = LAYERS["fp8"]
    rest = {key: part for key, part in stored.items() if key != f"{layer}.weight_scale"}
    path = model_file("diffusion_models/to_merge.safetensors", rest)
    with pytest.raises(host.ops.LycorisError, match=f"{layer}.weight.*cannot read a quantised weight"):
        exported(f"diffusion_models/{path.name}", host.stack((adapter, 0.8, 0.0)))


@pytest.mark.parametrize("name", ["asym_w4a8_int8", "awq_w4a16", "svdquant_w4a4"])
def test_a_format_whose_tensors_are_not_known_is_named(
    host: Host,
    stored: dict[str, Tensor],
    adapter: str,
    exported: Callable[..., Path],
    model_file: Callable[..., Path],
    name: str,
) -> None:
    """Newer hosts have them. They store two columns in a byte, and need further tensors."""
    formats = host.module("lycoris_nodes.host.quantised")
    assert set(formats.KNOWN) == {kind for kind, *_ in FORMATS.values()}
    layer = LAYERS["int8"]
    weight = stored[f"{layer}.weight"]
    rest = {key: part for key, part in stored.items() if not key.startswith(f"{layer}.")}
    mark = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)
    rest |= {f"{layer}.weight": weight[:, ::2].clone(), f"{layer}.comfy_quant": mark}
    path = model_file("diffusion_models/to_merge.safetensors", rest)
    with pytest.raises(host.ops.LycorisError, match=rf"to_merge.*{layer}\.weight.*I8 in the format {name}"):
        exported(f"diffusion_models/{path.name}", host.stack((adapter, 0.8, 0.0)))


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
    """The tensors of an exported file must equal those of the patched model, byte by byte.

    A file may say in tensors or in its metadata how its weights are quantised.
    """

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
    load(patched.model)
    for layer in LAYERS.values():
        own = {key: merged[f"{prefix}{layer}.{key}"] for key in packed(module(patched, layer).weight)}
        assert_same(own, packed(module(patched, layer).weight))
    changed = {f"{prefix}{layer}.weight" for layer in (*LAYERS.values(), *PLAIN)}
    changed |= {
        f"{prefix}{layer}.{name}" for layer in LAYERS.values() for name in ("weight_scale", "weight_scale_2")
    }
    for key in tensors.keys() - changed:
        assert torch.equal(bits(merged[key]), bits(tensors[key])), key


def test_what_was_learned_is_extracted_from_a_quantised_file_and_its_rounding_is_not(host: Host) -> None:
    """The tuned model is quantised in every format, and its base is in float16."""
    before = float_unet()
    tuned, changes = dict(before), {}
    for name, layer in LAYERS.items():
        weight = tuned.pop(f"{layer}.weight").float()
        delta = torch.randn(weight.shape[0], 2) @ torch.randn(2, weight.shape[1])
        changes[layer] = delta * (0.5 * weight.norm() / delta.norm())
        tuned |= quantised(host, name, weight + changes[layer], f"{layer}.weight")
    paths = [host.base / "models" / "diffusion_models" / f"{name}_extract.safetensors" for name in ("a", "b")]
    for path, tensors in zip(paths, (before, tuned), strict=True):
        save_file(tensors, path)
    base, after = (f"diffusion_models/{path.name}" for path in paths)
    made, report = host.run("LycorisExtractAdapter", after, base, "auto", "lora", strict=False)
    (entry,) = made
    assert set(entry.adapter.info) == {f"diffusion_model.{layer}" for layer in LAYERS.values()}
    assert "rounding of the sources" in report
    for name, layer in LAYERS.items():
        found = entry.adapter.layers[f"diffusion_model.{layer}"]
        change = found.delta(torch.zeros(changes[layer].shape))
        assert found.rank == 2, f"{name}: rank {found.rank}"
        assert (change - changes[layer]).norm() < 0.1 * changes[layer].norm(), name


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [
        ("SD15", "cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc1"),
        ("SDXL", "conditioner.embedders.0.transformer.text_model.encoder.layers.3.mlp.fc1"),
        ("SD3", "text_encoders.clip_g.transformer.text_model.encoder.layers.3.mlp.fc1"),
        ("Flux", "text_encoders.t5xxl.transformer.encoder.block.3.layer.0.SelfAttention.q"),
    ],
)
def test_a_text_encoder_in_a_checkpoint_is_rounded_as_live(host: Host, architecture: str, layer: str) -> None:
    """The seed comes of the name that the host itself gives the weight when it loads the checkpoint."""
    import comfy.supported_models
    import comfy.utils

    key = f"{layer}.weight"
    config = getattr(comfy.supported_models, architecture)
    (live,) = config.process_clip_state_dict(config.__new__(config), {key: torch.zeros(1)})
    assert live != key
    stored, values = quantised(host, "fp8", torch.randn(32, 16), key), torch.randn(32, 16)
    weight = host.ops.Quantised(key, "float8_e4m3fn", (32, 16), {}, {"format": "float8_e4m3fn"})
    codec = importlib.import_module(f"{host.pack.__name__}.lycoris_nodes.files.codec").HostCodec()
    found = codec.encode(weight, values.clone(), stored)[key]

    def rounded(name: str) -> Tensor:
        own = {part.removeprefix(f"{layer}."): tensor for part, tensor in stored.items()}
        unpacked = host.module("lycoris_nodes.host.quantised").quantised_layer((32, 16), own, weight.options)
        seed = comfy.utils.string_to_seed(name)
        made = unpacked.set_weight(values.clone(), seed=seed, return_weight=True)
        return made.state_dict("weight")["weight"]

    assert torch.equal(bits(found), bits(rounded(live)))
    assert not torch.equal(bits(found), bits(rounded(key))), "every seed gives the same"


def test_older_files_keep_their_names(host: Host, adapter: str, exported: Callable[..., Path]) -> None:
    """An older file has one mark for the whole model, and other names for the scales.

    Most scales are in 16 bits here. New scales must be written in float32.
    """

    names = {f"{layer}.weight" for layer in LAYERS.values()}
    tensors: dict[str, Tensor] = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for key, weight in float_unet().items():
        if key in names:
            own = quantised(host, "fp8", weight, key)
            scale = own[f"{key}_scale"].reshape(1)
            wide = key.endswith("to_q.weight")
            tensors |= {
                key: own[key],
                f"{key.removesuffix('weight')}scale_weight": scale if wide else scale.half(),
            }
        else:
            tensors[key] = weight
    path = host.base / "models" / "diffusion_models" / "older.safetensors"
    save_file(tensors, path)
    stack = host.stack((adapter, 0.8, 0.0))
    merged = load_file(exported(f"diffusion_models/{path.name}", stack))
    assert merged.keys() == tensors.keys()
    model = host.unet(path.name)
    live = host.apply(model, stack)
    load(live.model)
    for layer in LAYERS.values():
        own = packed(module(live, layer).weight)
        scale = merged[f"{layer}.scale_weight"]
        assert torch.equal(bits(merged[f"{layer}.weight"]), bits(own["weight"]))
        assert scale.shape == (1,) and scale.dtype == torch.float32 and scale == own["weight_scale"]
    unload()


SMOOTHED = LAYERS["nvfp4"]
"""A layer whose input the host multiplies by factors, in a model of the fixture below."""


@pytest.fixture
def smoothed(stored: dict[str, Tensor], model_file: Callable[..., Path]) -> tuple[Path, Tensor]:
    """A file with factors for the input of the layer SMOOTHED, and these factors."""
    torch.manual_seed(2)
    factors = 0.5 + torch.rand(unet_layout((1,), 1)[f"{SMOOTHED}.weight"].shape[1])
    tensors = {**stored, f"{SMOOTHED}.pre_quant_scale": factors}
    return model_file("diffusion_models/smoothed.safetensors", tensors), factors


def test_a_change_of_a_layer_with_a_scaled_input_is_exported_as_it_is_meant(
    host: Host, adapter: str, exported: Callable[..., Path], smoothed: tuple[Path, Tensor]
) -> None:
    """The weight that is meant is the stored weight times the factors.

    The strength is so large that the change is larger than the rounding of the weight.
    """
    path, factors = smoothed
    strength = 30.0
    stack = host.stack((adapter, strength, 0.0))
    merged = exported(f"diffusion_models/{path.name}", stack)
    again = path.with_name("smoothed_merged.safetensors")
    again.write_bytes(merged.read_bytes())
    before, after = (dequantised(host.unet(file.name), SMOOTHED) for file in (path, again))
    (entry,) = stack
    (layer,) = (entry.adapter.layers[name] for name in entry.adapter.layers if name.endswith(SMOOTHED))
    exact = host.ops.patch_(before * factors, [(layer, strength)])
    error = (after * factors - exact).norm() / exact.norm()
    naive = (host.ops.patch_(before.clone(), [(layer, strength)]) * factors - exact).norm() / exact.norm()
    print(f"{error:.3f} by rounding; {naive:.3f} if the factors were ignored")
    # Without the factors the result would be far off.
    assert error < 0.2 < naive


def test_a_layer_with_a_scaled_input_is_not_merged_into_live(
    host: Host, adapter: str, smoothed: tuple[Path, Tensor]
) -> None:
    model = host.unet(smoothed[0].name)
    with pytest.raises(host.ops.LycorisError, match=f"{SMOOTHED}.*multiplies the input by.*bypass"):
        host.apply(model, host.stack((adapter, 0.8, 0.0)))


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_plain_float8_weights_are_patched_in_float32_and_rounded_by_the_host(
    host: Host, adapter: str, dtype: str
) -> None:
    import comfy.float
    import comfy.model_management
    import comfy.utils

    path = host.base / "models" / "diffusion_models" / "float.safetensors"
    save_file(float_unet(), path)
    model = host.unet(path.name, dtype)
    stack = host.stack((adapter, 0.8, 0.0))
    patched = host.apply(model, stack)
    (entry,) = stack
    wanted: dict[str, Tensor] = {}
    for name, layer in entry.adapter.layers.items():
        weight = module(model, name.removeprefix("diffusion_model.")).weight
        assert weight.itemsize == 1
        exact = host.ops.patch_(weight.detach().float(), [(layer, 0.8)])
        wanted[name] = comfy.float.stochastic_rounding(
            exact, weight.dtype, seed=comfy.utils.string_to_seed(f"{name}.weight")
        )
    assert wanted
    # The host runs every node in inference mode.
    with torch.inference_mode():
        load(patched.model)
    for name, weight in wanted.items():
        found = module(patched, name.removeprefix("diffusion_model.")).weight
        assert found.dtype == weight.dtype and torch.equal(bits(found), bits(weight)), name
    unload()


@pytest.fixture
def small(stack_of: Callable[..., Any]) -> Any:
    """A stack with one layer, for a weight of 24 x 16 named `diffusion_model.x.weight`."""
    return stack_of({"x": lora((24, 16))})


def test_a_quantised_embedding_is_patched_too(host: Host, small: Any) -> None:
    """The host cannot unpack an embedding, so it gives the quantised weight to the patch."""
    import comfy.ops

    weight = torch.randn(24, 16)
    tensors = {
        key.removeprefix("x."): tensor for key, tensor in quantised(host, "int8", weight, "x.weight").items()
    }
    layer = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32).Embedding(24, 16, dtype=torch.float32)
    layer.load_state_dict(tensors)
    patched = host.apply(model_of(x=layer), small)
    before = layer.weight.dequantize().clone()
    (entry,) = small
    exact = host.ops.patch_(before.clone(), [(one, 1.0) for one in entry.adapter.layers.values()])
    ids = torch.arange(24)
    patched.model.load(torch.device("cpu"), full_load=True)
    assert torch.equal(layer(ids), exact) and not torch.equal(exact, before)
    patched.model.unpatch_model()
    assert torch.equal(layer(ids), before)
    patched.model.load(torch.device("cpu"), lowvram_model_memory=1)
    assert torch.equal(layer(ids), exact)
    patched.model.unpatch_model()


@pytest.fixture
def fp8(host: Host) -> Patched:
    """A model of one layer `x` whose weight (24, 16) is quantised."""
    tensors = quantised(host, "fp8", torch.randn(24, 16), "x.weight")
    own = {key.removeprefix("x."): tensor for key, tensor in tensors.items()}
    unpacked = host.module("lycoris_nodes.host.quantised").quantised_layer
    return model_of(x=unpacked((24, 16), own, {"format": "float8_e4m3fn"}))


def test_nodes_that_read_weights_take_a_quantised_model(
    host: Host, fp8: Patched, stack_of: Callable[..., Any]
) -> None:
    # Only the state dict has these, and the layer holds no such things.
    assert fp8.model.model_state_dict().keys() > {f"diffusion_model.x.{n}" for n in ("weight", "comfy_quant")}
    stack = stack_of({"x": kinds((24, 16))["lora-dora-out"]})
    (entry,) = stack
    base = dequantised(fp8, "x")
    change = host.ops.patch_(base.clone(), [(one, 1.0) for one in entry.adapter.layers.values()]) - base
    found = {
        "merge": host.run("LycorisMergeAdapters", {"method": "sum"}, stack, model=fp8.model, dtype="float32"),
        "resize": host.run(
            "LycorisResizeAdapter", stack, "rank 16", "lora", model=fp8.model, dtype="float32"
        ),
    }
    for name, (made, _) in found.items():
        ((layer,),) = (one.adapter.layers.values() for one in made)
        assert torch.allclose(layer.delta(torch.zeros(24, 16)), change, atol=1e-4), name
    learned, loaded = stack_of({"x": lora((24, 16))}), "the connected model"
    tuned = host.apply(fp8, learned).model
    made, _ = host.run("LycorisExtractAdapter", loaded, loaded, "rank 16", "lora", False, tuned, fp8.model)
    (((ours,),), ((theirs,),)) = ((one.adapter.layers.values() for one in each) for each in (made, learned))
    wanted = theirs.delta(torch.zeros(24, 16))
    assert (ours.delta(torch.zeros(24, 16)) - wanted).norm() < 2e-3 * wanted.norm()
    _, said = host.run("LycorisInspect", stack, fp8.model)
    assert f"({change.norm() / base.norm():.2%} of its weight)" in said


def test_changes_are_measured_on_the_weight_without_its_patches_and_only_where_it_can_be_read(
    host: Host, fp8: Patched, stack_of: Callable[..., Any]
) -> None:
    stack = stack_of({"x": kinds((24, 16))["lora-dora-out"]})
    report, _ = host.run("LycorisBlockInfo", fp8.model, None, stack)
    assert "100.0%" in report and "not measured" not in report
    weights = door(host).LoadedWeights("the model", host.apply(fp8, stack_of({"x": lora((24, 16))})).model)
    key = "diffusion_model.x.weight"
    assert torch.equal(weights.original(key), dequantised(fp8, "x"))
    assert not torch.equal(weights.read(key), weights.original(key))
    module(fp8, "x").pre_quant_scale = torch.ones(16)
    report, _ = host.run("LycorisBlockInfo", fp8.model, None, stack)
    assert "not measured: 1 change depends on the weights of the model" in report


def test_a_state_dict_may_name_what_the_model_does_not_hold(host: Host) -> None:
    """ComfyUI-GGUF adds a temporary weight to the state dict, which counts for the largest layer."""

    class Layer(torch.nn.Linear):
        def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[prefix + "temp.weight"] = torch.empty(5, 6, device="meta")

    shapes = door(host).weight_shapes(model_of(x=Layer(16, 24)).model)
    assert shapes["diffusion_model.x.temp.weight"] == (5, 6) and shapes["diffusion_model.x.weight"] == (
        24,
        16,
    )


@pytest.mark.parametrize("patch", [1, 4])
@pytest.mark.parametrize("at", [1, 2])
def test_where_memory_runs_out_the_model_is_as_it_was(
    host: Host, model: Patched, adapter: str, monkeypatch: pytest.MonkeyPatch, patch: int, at: int
) -> None:
    import comfy.model_management

    patched = host.apply(model, host.stack((adapter, 0.8, 0.0)))
    before = {key: weight.clone() for key, weight in model.model.model_state_dict().items()}
    unpatched = host.sampled(model.model, STEPS, 128)
    real, calls = host.ops.PatchPlan.apply_, []
    buffers = importlib.import_module(f"{host.ops.__name__}.maths.scratch")

    def apply(plan: Any, weight: Tensor, *rest: Any) -> Tensor:
        calls.append(tuple(weight.shape))
        # A buffer that is kept from an earlier weight would need no allocation.
        monkeypatch.setattr(buffers, "_HELD", buffers._Held())
        with MemoryRunsOut(at) if len(calls) == patch else nullcontext():
            return real(plan, weight, *rest)

    monkeypatch.setattr(host.ops.PatchPlan, "apply_", apply)
    with pytest.raises(host.ops.LycorisError, match=r"diffusion_model\..*no memory.*MB.*bypass") as raised:
        load(patched.model)
    assert str(list(calls[-1])) in str(raised.value) and raised.value.key in patched.model.patches
    assert isinstance(raised.value.__cause__, torch.cuda.OutOfMemoryError)
    # The host's own answer to such an error is to unload everything.
    assert comfy.model_management.is_oom(raised.value)
    monkeypatch.undo()
    after = model.model.model_state_dict()
    assert all(torch.equal(bits(after[key]), bits(weight)) for key, weight in before.items())
    assert torch.equal(host.sampled(model.model, STEPS, 128), unpatched)
    load(patched.model)
    assert not torch.equal(host.sampled(patched.model, STEPS, 128), unpatched)


def test_what_a_cpu_says_of_its_memory_is_understood_and_other_errors_pass(
    host: Host, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch has several errors for a lack of memory, and some are known only by their text."""
    patched = host.apply(model_of(x=torch.nn.Linear(16, 24)), small)
    ((_, patch, *_),) = patched.model.patches["diffusion_model.x.weight"]

    def failing(error: Exception) -> Callable[..., Tensor]:
        def apply(*_: Any) -> Tensor:
            raise error

        return apply

    def calculate() -> Tensor:
        return patch.calculate_weight(torch.zeros(24, 16), "diffusion_model.x.weight", 1.0, 1.0, None, None)

    said = "[enforce fail at alloc_cpu.cpp:126] . DefaultCPUAllocator: can't allocate memory: you tried to"
    for error in (RuntimeError(said), MemoryError(), RuntimeError("MPS backend out of memory")):
        monkeypatch.setattr(host.ops.PatchPlan, "apply_", failing(error))
        with pytest.raises(host.ops.LycorisError, match=r"x\.weight.*no memory.*24, 16.*float32 on cpu"):
            calculate()
    monkeypatch.setattr(host.ops.PatchPlan, "apply_", failing(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        calculate()
