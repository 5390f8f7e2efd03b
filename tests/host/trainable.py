"""Short forms of what the tests of training do: the pack's own modules, and tiny models open for training."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import iter_modules
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosting import Host, Patched, clip_of, loaded_by_the_host, needs, patcher
from torch import Tensor

from tests.harness import zoo
from tests.harness.inputs import FURTHER, INPUTS
from tests.harness.prompts import grouped

CPU = torch.device("cpu")
TWO_LEVELS: dict[str, Any] = {
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 0],
    "transformer_depth_output": [1, 1, 0, 0],
}
"""Settings of a UNet that has each kind of layer. A step takes less than half the time of the usual tiny one,
which has three levels of two blocks."""


def module(host: Host, name: str) -> Any:
    """A module of the pack's `training`, as the host has loaded the pack. Without a name, those in one."""
    rooms = [host.module(f"lycoris_nodes.training.{room}") for room in ("model", "data")]
    found = {one: f"{room.__name__}.{one}" for room in rooms for _, one, _ in iter_modules(room.__path__)}
    if name:
        return importlib.import_module(found[name])
    inner = {
        key: value for one in found.values() for key, value in vars(importlib.import_module(one)).items()
    }
    return SimpleNamespace(**inner)


def tiny(architecture: str, seed: int = 3, *, cut: bool = True, **changed: Any) -> Any:
    """A tiny model that runs. Its weights are small, so that its activations are of a usual size.

    Large weights are cut, see `zoo.make`, unless `cut` is False or the model could not run. Where the host
    has no such architecture, the test is skipped.
    """
    from comfy.model_base import model_sampling

    needs(architecture)
    inputs = {**INPUTS, **FURTHER}[architecture]
    model = zoo.make(architecture, seed, changed={**inputs.changed, **changed}, cut=cut and inputs.cut)
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


def chained(net: Any, loss: Callable[[], Tensor]) -> list[Tensor]:
    """The gradients of all trained tensors by the chain rule, for a network that is not applied.

    dL/dW is that of the plain model, whose layers have the changed weights, and goes through `delta`.
    """
    held: list[tuple[Any, torch.nn.Parameter]] = []
    weights: dict[str, torch.nn.Parameter] = {}
    for path, member in net.members.items():
        plain = member.site.module.weight
        held.append((member.site.module, plain))
        # The zoo cuts large weights, of layers that are not called.
        if plain.shape == member.site.shape:
            with torch.no_grad():
                weights[path] = torch.nn.Parameter(plain + member.layer.delta(plain))
    try:
        for path, weight in weights.items():
            net.members[path].site.module.weight = weight
        loss().backward()
    finally:
        for inner, plain in held:
            inner.weight = plain
    found: list[Tensor] = []
    for (path, member), (_, plain) in zip(net.members.items(), held, strict=True):
        own = list(member.parameters())
        gradient = weights[path].grad if path in weights else None
        if gradient is None:
            found += [torch.zeros_like(parameter) for parameter in own]
        else:
            found += torch.autograd.grad(member.layer.delta(plain), own, gradient)
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


def by_the_sampler(model: Any, given: list[Any], latent: Any, **more: Any) -> dict[str, Any]:
    """What the model is called with in the first step of KSampler: its input, the sigma, and the rest."""
    import comfy.sample

    seen: list[dict[str, Any]] = []

    def noted(apply: Any, told: dict[str, Any]) -> Tensor:
        seen.append({"x": told["input"], "sigma": told["timestep"], **told["c"]})
        return torch.zeros_like(told["input"])

    sampled, noise = patcher(model), more.pop("noise", None)
    sampled.set_model_unet_function_wrapper(noted)
    noise = comfy.sample.prepare_noise(latent, 0) if noise is None else noise
    with torch.inference_mode():
        comfy.sample.sample(
            *(sampled, noise, 1, 1.0, "euler", "simple", given, given, latent),
            seed=0,
            disable_pbar=True,
            **more,
        )
    return {name: value for name, value in seen[0].items() if name not in ("transformer_options", "control")}


def in_a_step(
    host: Host, model: Any, given: list[Any], latent: Any, parts: Any = None, **more: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the model is called with by the sampler and in a training step, at the same noise and sigma.

    parts: masks of the latent's parts; where they are 0 the latent is given. There the model is far off, and
    right elsewhere: its loss must be 0.
    """
    from comfy.nested_tensor import NestedTensor
    from comfy.utils import unpack_latents

    training = module(host, "")
    held = training.latent_of(model, latent, CPU, parts)
    torch.manual_seed(4)
    torch.rand(1)
    noise: Any = torch.randn(held.values.shape)
    if getattr(latent, "is_nested", False):
        noise = NestedTensor(unpack_latents(noise, held.shapes))
    wanted, found = by_the_sampler(model, given, latent, noise=noise, **more), dict[str, Any]()

    def noted(x: Tensor, sigma: Tensor, transformer_options: Any, **conds: Any) -> Tensor:
        found.update(x=x, sigma=sigma, **conds)
        return held.values if held.noise_mask is None else held.values + 1000 * (1 - held.noise_mask)

    with training.opened(patcher(model)) as session, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module(host, "loss"), "sigma_at", lambda sampling, time: wanted["sigma"].clone())
        caption = training.caption_of(model, given, held)
        patch.setattr(model, "apply_model", noted, raising=False)
        torch.manual_seed(4)
        loss = training.DiffusionLoss(session=session, times=training.Times())
        assert float(loss(session.network, [training.Sample(held, caption)])) == 0
    return wanted, found


def by_the_node(host: Host, name: str, **inputs: Any) -> Any:
    """What a node of the host makes of clips or pictures as large as the tests', beside an empty text.

    Inputs that are not given have their defaults.
    """
    text, size = [[torch.zeros(1, 5, WORD_WIDTH), {}]], {"width": PIXELS, "height": PIXELS, "batch_size": 1}
    node = host.nodes.NODE_CLASS_MAPPINGS[name]
    known = {one.id: getattr(one, "default", None) for one in node.GET_SCHEMA().inputs}
    usual = {key: one for key, one in known.items() if one is not None}
    usual |= {key: one for key, one in {**size, "positive": text, "negative": text}.items() if key in known}
    with torch.inference_mode():
        return host.run(name, **{**usual, **inputs})


def frames_of(host: Host, path: Path, rate: float, count: int, start: int = 0) -> Tensor:
    """Frames of a clip as Training Pictures takes them."""
    clip, sizes = (host.module(f"lycoris_nodes.dataset.{name}") for name in ("clip", "sizes"))
    whole = sizes.middle((PIXELS, PIXELS), (PIXELS, PIXELS))
    return clip.pixels_of_clip(path, clip.Cut(start, count), rate, whole)


CHANNELS, SIDE, WORDS, WIDTH = 4, 8, 5, 24
"""Sizes of the latents and captions of the smallest UNet."""


def latent(seed: int, side: int = SIDE) -> dict[str, Tensor]:
    """A latent with something to learn: a gradient and a disc, a little different for each seed."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (SIDE, side)], indexing="ij")
    draw = torch.Generator().manual_seed(seed)
    planes = [x, y, (x**2 + y**2 < 0.5).float(), x * y]
    noise = 0.1 * torch.randn((CHANNELS, SIDE, side), generator=draw)
    return {"samples": (4 * torch.stack(planes) + noise)[None]}


def caption(seed: int, words: int = WORDS, width: int = WIDTH, **more: Any) -> list[Any]:
    """A conditioning of random values, with more that nodes say of it."""
    draw = torch.Generator().manual_seed(100 + seed)
    return [[torch.randn((1, words, width), generator=draw), dict(more)]]


MANY = (
    {
        f"{kind}{name}"
        for kind in ("", "regularisation_", "validation_")
        for name in ("latents", "positive", "captions", "masks", "empty_caption")
    }
    | {"sample_positive"}
    | {"other_positive", "less", "more"}
)
"""The inputs of nodes that take lists of which there may be several."""


SAMPLED = 3
"""The steps of a sample, which tells as much of a tiny model as twenty."""


def train(host: Host, folder: Path, **inputs: Any) -> dict[str, Any]:
    """Run the node that trains as the host does, with a folder for outputs; what it gives, by name."""
    return run_node(host, "LycorisTrain", folder, **{"filename_prefix": "loras/style", **inputs})


def run_node(host: Host, name: str, folder: Path, **inputs: Any) -> dict[str, Any]:
    """Run a node that takes lists as the host does, with a folder for outputs; what it gives, by name."""
    import folder_paths

    host.module("lycoris_nodes.training.node.previews").STEPS = SAMPLED
    node, before = host.nodes.NODE_CLASS_MAPPINGS[name], folder_paths.get_output_directory()
    widgets = [one for one in node.GET_SCHEMA().inputs if getattr(one, "default", None) is not None]
    known = {one.id: one.default for one in widgets} | {"seed": 5}
    given = {name: value if name in MANY else [value] for name, value in {**known, **inputs}.items()}
    folder_paths.set_output_directory(str(folder))
    try:
        with torch.inference_mode():
            made = node.execute(**grouped(node, given))
    finally:
        folder_paths.set_output_directory(before)
    names = [output.id for output in node.GET_SCHEMA().outputs]
    return dict(zip(names, made.args, strict=True)) | {"ui": made.ui}


def held_out_loss(
    host: Host, patched: Any, latents: list[Any], positive: list[Any], batch_size: int = 1
) -> float:
    """The mean loss of held-out latents as the node validates, of a model with what is applied to it."""
    training, samples = module(host, ""), module(host, "samples")
    chance, losses = host.module("lycoris_ops.maths.chance").Chance, []
    with training.opened(patched) as session, torch.no_grad():
        held = samples.samples_of(session, latents, positive, seed=5)
        loss = training.DiffusionLoss(session=session, times=training.trained_family(session.model).times)
        for number, batch in enumerate(samples.judged(held, batch_size, 4)):
            with chance(5, "validation", number).drawn():
                losses.append(float(loss(session.network, batch)))
    return sum(losses) / len(losses)


def trained_into_an_exact_file(
    host: Host, model: Any, folder: Path, pictures: dict[str, list[Any]], steps: int = 6, **inputs: Any
) -> None:
    """Assert that some steps lower the loss of these latents with what they are given, at fixed noise and
    times, and that the file gives the model this loss in the host."""
    how: dict[str, Any] = {"steps": steps, "rank": 4, "learning_rate": 1e-2, "warmup": 0}
    how |= {"validate_every": steps}
    how |= {**pictures, **{f"validation_{one}": values for one, values in pictures.items()}}
    base = patcher(model)
    result = train(host, folder, model=base, preset="full", **how, **inputs)
    losses = dict(result["loss_map"]["validation"])
    assert losses[steps] < losses[0]
    loaded = loaded_by_the_host(Patched(base, None), Path(result["path"])).model
    assert held_out_loss(host, loaded, *pictures.values()) == pytest.approx(losses[steps], rel=1e-5)


TOKENIZERS: dict[str, tuple[str, str]] = {
    "SD1.5": ("comfy.sd1_clip", "SD1Tokenizer"),
    "SDXL": ("comfy.sdxl_clip", "SDXLTokenizer"),
    "Flux 1": ("comfy.text_encoders.flux", "FluxTokenizer"),
    "Qwen-Image": ("comfy.text_encoders.qwen_image", "QwenImageTokenizer"),
    "Z-Image": ("comfy.text_encoders.z_image", "ZImageTokenizer"),
    "HunyuanImage 2.1": ("comfy.text_encoders.hunyuan_image", "HunyuanImageTokenizer"),
}
"""The host's tokenizers whose words come with it."""


def clip_with_words(name: str) -> Any:
    """The host's CLIP around tiny text encoders that know all words."""
    encoders = zoo.make_encoders(name)
    draw = torch.Generator().manual_seed(2)
    for encoder in zoo.ENCODERS[name].configs:
        table = getattr(encoders, encoder).transformer.get_input_embeddings()
        values = torch.randn((table.num_embeddings, table.embedding_dim), generator=draw)
        table.weight = torch.nn.Parameter(values, requires_grad=False)
    where, kind = TOKENIZERS[name]
    return clip_of(encoders, getattr(importlib.import_module(where), kind)())


def encoded(host: Host, clip: Any, text: str) -> list[Any]:
    """What CLIP Text Encode makes of a text."""
    return host.nodes.CLIPTextEncode().encode(clip, text)[0]


SEEING: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "patch_size": 4,
}
SEEING |= {"image_size": 16, "projection_dim": 8, "hidden_act": "quick_gelu", "num_channels": 3}
SEEING |= {"model_type": "clip_vision_model"}
"""The configuration of a CLIP vision model, without the number of its layers."""


def vision_model(folder: Path, layers: int) -> Any:
    """A CLIP vision model with random weights, whose configuration is written into a folder."""
    from comfy.clip_vision import ClipVisionModel

    # Older hosts take no table.
    config = folder / "vision.json"
    config.write_text(json.dumps({**SEEING, "num_hidden_layers": layers}), encoding="utf-8")
    made, draw = ClipVisionModel(str(config)), torch.Generator().manual_seed(0)
    for parameter in made.model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    return made


PIXELS = 128
"""The resolution of training pictures: two steps of 64 pixels."""
WORD_WIDTH = 768
"""The width of the checkpoint's text encoder, which tiny models get."""


class Counted:
    """A VAE of the host's own classes with random weights, and how often it was asked to encode."""

    def __init__(self, channels: int, *, video: bool = False) -> None:
        import comfy.ldm.wan.vae
        import comfy.taesd.taesd
        from comfy.sd import VAE

        torch.manual_seed(channels)
        if video:
            sizes: dict[str, Any] = {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
            made = comfy.ldm.wan.vae.WanVAE(dim=2, z_dim=channels, num_res_blocks=2, attn_scales=[], **sizes)
        else:
            made = comfy.taesd.taesd.TAESD(latent_channels=channels)
        weights = {name: torch.randn_like(value) * 0.1 for name, value in made.state_dict().items()}
        self.vae = VAE(sd=weights)
        self.calls = 0
        self.then: Callable[[], object] = int
        if video:
            # It takes longer than all the rest where nodes encode references of a megapixel.
            attention = self.vae.first_stage_model.encoder.middle[1]
            attention.forward = lambda values, *_, **__: values
        encode = self.vae.first_stage_model.encode

        def counted(*args: Any, **kwargs: Any) -> Tensor:
            self.calls += 1
            made = encode(*args, **kwargs)
            self.then()
            return made

        self.vae.first_stage_model.encode = counted


def same(one: Any, other: Any) -> bool:
    """Whether two values are bitwise the same, tensors in lists, tables and objects too."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__dict__") and type(one) is type(other):
        return same(vars(one), vars(other))
    return bool(one == other)
