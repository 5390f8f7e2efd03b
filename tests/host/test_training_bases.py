"""Training beside models as nodes load them: in inference mode, in half precision, quantised, in low VRAM."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import Host, Patched, patcher
from packed import FORMATS, LAYERS, float_unet, gguf_like, quantised
from safetensors.torch import save_file
from torch.nn import functional
from trainable import CPU, caption, distance, fill, gradients, module, tiny, train, unchanged

from tests.harness.inputs import INPUTS

pytestmark = pytest.mark.host


def samples(training: Any, model: Any, count: int = 2, side: int = 8) -> list[Any]:
    draw = torch.Generator().manual_seed(5)
    made = []
    for number in range(count):
        # Pictures of one colour each, which are soon learned.
        colour = 5 * torch.randn(1, 4, 1, 1, generator=draw)
        latent = training.latent_of(model, colour.expand(1, 4, side, side), CPU)
        made.append(training.Sample(latent, training.caption_of(model, caption(number, 8, 768), latent)))
    return made


def gradients_of(
    training: Any, on: Any, *, include: Any = (), form: str | None = None, **more: Any
) -> tuple[Any, int]:
    """The gradients of LoRAs on some layers, and how many layers fetch their weights again."""
    with training.opened(on, **more) as opened:
        options = {"include": include} if include else {"preset": "attn-mlp"}
        if form:
            options["form"] = form
        net = opened.adapted(rank=4, seed=0, **options).apply_to()
        fill(net, scale=0.02)
        loss = training.DiffusionLoss(session=opened, times=training.Times())
        torch.manual_seed(2)
        loss(opened.network, samples(training, opened.model)).backward()
        return gradients(net), opened.fetching


@contextmanager
def loaded(host: Host, tensors: dict[str, torch.Tensor], dtype: str = "default") -> Iterator[Any]:
    """The patcher of a diffusion model of these tensors, loaded by the host's own node."""
    import comfy.model_management

    path = host.base / "models" / "diffusion_models" / "to_train_beside.safetensors"
    save_file(tensors, path)
    try:
        patcher = host.nodes.UNETLoader().load_unet(path.name, dtype)[0]
        # The host may put other tensors in the place of those that it has read.
        comfy.model_management.load_models_gpu([patcher])
        yield patcher
    finally:
        comfy.model_management.unload_all_models()
        path.unlink()


def test_a_weight_that_is_cast_in_each_pass_is_not_kept_for_the_backward_pass(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the host casts every float8 weight to float32 in each pass.

    Norms are trained too, and the bypass forms their changed weights."""
    training, session = module(host, ""), module(host, "session")

    def measured(patcher: Any) -> tuple[Any, int, int]:
        total: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            total[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return (*gradients_of(training, patcher, include="*", form="bypass"), sum(total.values()))

    with torch.inference_mode(), loaded(host, float_unet(), "fp8_e4m3fn") as patcher:
        with unchanged(patcher.model):
            found, layers, bytes_found = measured(patcher)
        monkeypatch.setattr(session, "weights_fetched_again", lambda *_: nullcontext(0))
        wanted, none, bytes_wanted = measured(patcher)
    assert layers > 20 and none == 0 and distance(found, wanted) < 1e-5
    assert bytes_found < bytes_wanted / 3


def test_the_hosts_own_bypass_is_a_part_of_the_base(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors are made in inference mode. Gradients pass through it, even where weights are cast."""
    import comfy.model_management
    import comfy.sd

    training, session = module(host, ""), module(host, "session")
    with torch.inference_mode(), loaded(host, float_unet(), "fp8_e4m3fn") as patcher:
        tensors = {}
        for layer in PACKED:
            outputs, inputs = patcher.model.diffusion_model.get_submodule(layer).weight.shape
            tensors[f"diffusion_model.{layer}.lora_up.weight"] = torch.randn(outputs, 4)
            tensors[f"diffusion_model.{layer}.lora_down.weight"] = torch.randn(4, inputs) / inputs
        alone, _ = gradients_of(training, patcher)
        bypassed = comfy.sd.load_bypass_lora_for_models(patcher, None, tensors, 1.0, 0.0)[0]
        comfy.model_management.load_models_gpu([bypassed])
        (injection,) = bypassed.injections["bypass_lora"]
        hooks = injection.inject.__closure__[0].cell_contents.hooks
        before = [value for hook in hooks for value in hook.adapter.weights]
        with unchanged(bypassed.model):
            found, layers = gradients_of(training, bypassed)
        assert len(hooks) == len(PACKED)
        after = [value for hook in hooks for value in hook.adapter.weights]
        assert all(one is two for one, two in zip(after, before, strict=True))
        monkeypatch.setattr(session, "weights_fetched_again", lambda *_: nullcontext(0))
        wanted, _ = gradients_of(training, bypassed)
    assert layers > 20 and distance(found, wanted) < 1e-5
    assert distance(alone, wanted) > 0.01, "the host's bypass changes nothing, so nothing is tested"


@pytest.mark.parametrize("name", FORMATS)
def test_quantised_weights_are_trained_beside(host: Host, name: str) -> None:
    """The gradients equal those of the unpacked weight, except for rounding in the host's own product."""
    training = module(host, "")
    layer = LAYERS[name]
    tensors = float_unet()
    packed = quantised(host, name, tensors[f"{layer}.weight"], f"{layer}.weight")
    beside = [layer, "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj", "input_blocks.1.1.proj_in"]
    rest = {key: value for key, value in tensors.items() if key != f"{layer}.weight"}
    with torch.inference_mode(), loaded(host, {**rest, **packed}) as patcher:
        from comfy.quant_ops import QuantizedTensor

        held = patcher.get_model_object(f"diffusion_model.{layer}").weight
        assert isinstance(held, QuantizedTensor)
        values = held.dequantize().clone()
        with unchanged(patcher.model):
            found, fetching = gradients_of(training, patcher, include=beside)
        assert fetching >= 1
    with torch.inference_mode(), loaded(host, {**rest, f"{layer}.weight": values.half()}) as patcher:
        wanted, _ = gradients_of(training, patcher, include=beside)
    error = distance(found, wanted)
    print(f"{name}: {error:.1e}")
    # "int4 rotated" also rounds the layer's input to four bits.
    assert error < (0.1 if name == "int4 rotated" else 0.01)


def test_packed_layers_of_other_packs_are_trained_beside(host: Host) -> None:
    """The layer unpacks its weight itself, and its packed data have another shape, as in ComfyUI-GGUF."""
    session = module(host, "session")
    with torch.inference_mode():
        rows = torch.randint(0, 256, (24, 17), dtype=torch.uint8)
        packed = gguf_like(rows)
        plain = torch.nn.Linear(16, 24)
        plain.weight.copy_((rows[:, 1:].float() - 128) / 256)
        plain.bias.copy_(packed.bias)
        models = []
        for layer in (packed, plain):
            model = torch.nn.Module()
            model.diffusion_model = torch.nn.Sequential(torch.nn.Linear(5, 16), layer, torch.nn.Linear(24, 2))
            for place in (0, 2):
                torch.manual_seed(place)
                model.diffusion_model[place].reset_parameters()
            models.append(model.requires_grad_(False))
        found = []
        for model in models:
            with unchanged(model), session.opened(patcher(model)) as opened:
                net = opened.adapted(rank=2, preset="full", seed=0).apply_to()
                assert opened.fetching == (model is models[0]) and len(net.members) == 3
                fill(net)
                opened.network(torch.ones(4, 5)).square().mean().backward()
                found.append(gradients(net))
    assert distance(*found) < 1e-5


PACKED = (
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0",
    "middle_block.1.transformer_blocks.0.ff.net.0.proj",
)


def with_packed_layers(host: Host, name: str) -> Any:
    """A context with a model whose layers `PACKED` are in this format, as its node loads it."""
    tensors = float_unet()
    if name != "gguf":
        for layer in PACKED:
            tensors |= quantised(host, name, tensors.pop(f"{layer}.weight"), f"{layer}.weight")
        return loaded(host, tensors)

    @contextmanager
    def replaced() -> Iterator[Any]:
        with loaded(host, tensors) as patcher:
            network = patcher.model.diffusion_model
            for layer in PACKED:
                whole = network.get_submodule(layer)
                values = (whole.weight.float() * 256 + 128).round().clamp(0, 255).byte()
                packed = gguf_like(functional.pad(values, (1, 0)))
                packed.bias.copy_(0 if whole.bias is None else whole.bias)
                network.set_submodule(layer, packed)
            yield patcher

    return replaced()


@pytest.mark.parametrize("name", ["fp8", "int8", "gguf"])
def test_the_node_trains_beside_packed_weights(host: Host, tmp_path: Path, name: str) -> None:
    """The held-out loss falls, and equals the loss of the model with the file applied by a bypass."""
    draw = torch.Generator().manual_seed(5)
    colours = [{"samples": 5 * torch.randn(1, 4, 1, 1, generator=draw).expand(1, 4, 8, 8)} for _ in range(2)]
    texts = [caption(number, 8, 768) for number in range(2)]
    given = {"latents": colours, "positive": texts, "preset": "attn-mlp", "rank": 4, "batch_size": 2}
    given |= {"validation_latents": colours, "validation_positive": texts}
    with torch.inference_mode(), with_packed_layers(host, name) as patcher:
        with unchanged(patcher.model):
            made = train(
                host, tmp_path, model=patcher, steps=8, validate_every=8, learning_rate=5e-3, **given
            )
        (_, before), (_, after) = made["loss_map"]["validation"]
        assert after < 0.9 * before
        assert "layers are fetched again" in made["report"]
        assert {f"diffusion_model.{layer}" for layer in PACKED} <= made["stack"].entries[
            0
        ].adapter.layers.keys()
        applied = host.apply(Patched(patcher, None), made["stack"], mode="bypass", clip=False)
        again = train(host, tmp_path, model=applied.model, steps=1, validate_every=1, **given)
        assert again["loss_map"]["validation"][0][1] == pytest.approx(after, rel=1e-4)


def test_low_vram_gives_the_gradients_of_a_full_load(
    host: Host, plain: Patched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In low VRAM the host applies patches of the base anew in every pass."""
    training, door = module(host, ""), host.module("lycoris_nodes.host.training")
    patched = host.apply(plain, host.stack(("lora", 1.0, 0.0)), clip=False)
    assert patched.model.patches
    wanted, before = gradients_of(training, patched.model)
    unpatched, _ = gradients_of(training, plain.model)
    assert distance(unpatched, wanted) > 1e-3
    patched.model.detach()

    def low(patchers: list[Any], memory: float) -> None:
        for one in patchers:
            one.load(CPU, lowvram_model_memory=1)

    monkeypatch.setattr(door, "loaded", low)
    try:
        found, layers = gradients_of(training, patched.model)
        assert any(getattr(inner, "weight_function", ()) for inner in patched.model.model.modules())
        assert layers >= before and distance(found, wanted) < 1e-3
    finally:
        patched.model.unpatch_model()


def every_layer(model: torch.nn.Module, *_: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """All layers that the host can offload."""
    for path, inner in model.named_modules():
        if hasattr(inner, "comfy_cast_weights") and getattr(inner, "weight", None) is not None:
            yield path, inner


@pytest.mark.parametrize(
    ("architecture", "checkpointing"), [("SD1.5", False), ("Wan 2.1 t2v", True), ("Flux 1", True)]
)
def test_offloaded_layers_fetch_their_weights_again(
    host: Host, monkeypatch: pytest.MonkeyPatch, architecture: str, checkpointing: bool
) -> None:
    """As on a GPU that is short of memory: all weights pass through one buffer, one after another."""
    import comfy.ops

    session, frozen = module(host, "session"), module(host, "frozen")
    model = tiny(architecture)
    x, conds = INPUTS[architecture].make()

    def found() -> Any:
        with session.opened(patcher(model), checkpointing=checkpointing) as opened:
            net = opened.adapted(rank=2, preset="full", seed=0, form="bypass").apply_to()
            fill(net)
            opened.prediction(x, torch.tensor([0.4, 0.7]), conds).square().mean().backward()
            return gradients(net), opened.fetching

    wanted, none = found()
    assert none == 0
    buffer = torch.empty(1 << 20)

    def through_the_buffer(layer: Any, *given: Any, **options: Any) -> Any:
        weight, bias, *rest = cast_bias_weight(layer, *given, **options)
        lent = buffer[: weight.numel()].view(weight.shape)
        # Through `data`: autograd does not notice this change, nor would it notice a copy on another stream.
        lent.data.copy_(weight)
        return lent, bias, *rest

    cast_bias_weight = comfy.ops.cast_bias_weight
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", through_the_buffer)
    for _, layer in every_layer(model):
        layer.comfy_cast_weights = True
    # By the backward pass, the memory that autograd keeps holds another weight, or one of another shape.
    with contextlib.suppress(RuntimeError, IndexError):
        spoilt, _ = found()
        assert distance(spoilt, wanted) > 0.01, "the buffer spoils nothing, so nothing is tested"
    monkeypatch.setattr(frozen, "lent", lambda *given: (layer for _, layer in every_layer(*given)))
    right, layers = found()
    assert layers > 20 and distance(right, wanted) < 1e-5
