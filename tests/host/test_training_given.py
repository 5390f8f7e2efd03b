"""What a model is given in a training step: bitwise what the host's sampler gives it."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosting import Host, patcher
from torch import Tensor
from trainable import by_the_sampler, module, same, tiny

from tests.harness.inputs import FURTHER, INPUTS

pytestmark = pytest.mark.host

ALL = {**INPUTS, **FURTHER}
FRAMES = 5
"""Frames of a latent of a video."""
_WAN, _WIDE = {"in_dim": 16, "out_dim": 16}, {"out_dim": 16}
CHANGED: Mapping[str, Mapping[str, Any]] = {
    "SDXL": {"adm_in_channels": 12 + 6 * 256},
    **dict.fromkeys(("Wan 2.1 t2v", "Wan VACE", "Wan S2V", "Wan SCAIL", "Wan SCAIL 2", "Wan causal"), _WAN),
    **dict.fromkeys(("Wan 2.1 i2v", "Wan camera", "Wan HuMo"), _WIDE),
    "Wan Animate": {"in_dim": 36, "out_dim": 16},
    "CogVideoX": {"in_channels": 16, "out_channels": 16},
    "HunyuanVideo 1.5": {"in_channels": 2 * 32 + 1},
}
"""Tiny models with as many channels as the latents of the real ones, and what is concatenated to them."""
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "SD1.5 inpainting": ("SD1.5", {"in_channels": 9}),
    "SDXL inpainting": ("SDXL", {"in_channels": 9, **CHANGED["SDXL"]}),
    "Flux Fill": ("Flux 1", {"in_channels": 96, "out_channels": 16}),
    "Flux control": ("Flux 1", {"in_channels": 32, "out_channels": 16}),
    "CogVideoX i2v": ("CogVideoX", {"in_channels": 32, "out_channels": 16}),
}
"""Architectures with more channels than usual: the usual one, and how the tiny model differs."""
TEXTS: Mapping[str, tuple[int, ...]] = dict.fromkeys(("Stable Audio", "Stable Audio 3"), (5, 768))
"""Texts as wide as the real ones, where the host puts something of that width behind them."""
TEXT, BESIDE, CONCATENATED, SOUND = "text", "references", "concatenated", "sound"
SHOWN: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("Flux 1", "Flux 2", "Omnigen2", "Qwen-Image", "Krea 2"), (BESIDE, "ref_latents")),
    **dict.fromkeys(("Mage-Flow", "JoyImage", "Boogu"), (BESIDE, "ref_latents")),
    **dict.fromkeys(("Wan 2.1 i2v", "Wan camera", "SVD", "Kandinsky 5"), (CONCATENATED, "c_concat")),
    **dict.fromkeys(VARIANTS, (CONCATENATED, "c_concat")),
    "HiDream": (CONCATENATED, "image_cond"),
    **dict.fromkeys(("Wan S2V", "WanDancer"), (SOUND, "audio_embed")),
}
"""Architectures that take pictures beside the text: of which kind, and the argument that they become."""
REFUSED = (RuntimeError, AttributeError, KeyError, TypeError, ValueError, IndexError)
"""How the host's models answer to what they do not take."""


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning(model: Any, architecture: str, **more: Any) -> list[Any]:
    """A text as the host's encoders give it, with all that one of them says beside it."""
    words = TEXTS.get(architecture) or ALL[architecture].text or (5, 20)
    settings: dict[str, Any] = {"pooled_output": drawn(1, 12, seed=2)}
    settings["conditioning_llama3"] = drawn(1, 2, *words, seed=3)
    settings["attention_mask"] = torch.ones(1, words[0])
    settings["conditioning_lyrics"] = torch.arange(4)[None]
    # LyCORIS Training Pictures says these too, and no model takes them.
    settings |= {"lycoris_caption": "mystyle, a boat", "lycoris_trigger": "mystyle"}
    # What the captions say for samplers is not for a training, see `caption_of`.
    return [[drawn(1, *words, seed=4), {**settings, **more}]]


def latent_for(model: Any) -> Tensor:
    """An empty latent."""
    kind = model.latent_format
    sides = {1: (16,), 2: (8, 8), 3: (FRAMES, 8, 8)}[kind.latent_dimensions]
    return torch.zeros(1, kind.latent_channels, *sides)


def in_training(host: Host, model: Any, given: list[Any], latent: Tensor) -> dict[str, Any]:
    """What the model is called with in a training step on a latent of this shape."""
    training = module(host, "")
    seen: list[dict[str, Any]] = []

    def noted(x: Tensor, sigma: Tensor, transformer_options: Any, **conds: Any) -> Tensor:
        seen.append(conds)
        return torch.zeros_like(x)

    with training.opened(patcher(model)) as session:
        held = training.Latent(torch.ones_like(latent), (latent.shape,))
        caption = training.caption_of(model, given, held)
        model.apply_model = noted
        try:
            sample = training.Sample(held, caption)
            training.DiffusionLoss(session=session, times=training.Times())(session.network, [sample])
        finally:
            del model.apply_model
    return seen[0]


def settings_of(architecture: str, latent: Tensor) -> dict[str, dict[str, Any]]:
    """What nodes of the host say of pictures beside a text, by the kind of node."""
    seen = SimpleNamespace(
        penultimate_hidden_states=drawn(1, 4, 12),
        last_hidden_state=drawn(1, 4, 12),
        image_sizes=[(3, 32, 32)],
    )
    wide = (*latent.shape[:2], *(max(1, side - 2) for side in latent.shape[2:]))
    shown = {"reference_latents": [drawn(*latent.shape, seed=5), drawn(*wide, seed=6)]}
    mask = torch.ones(1, 1, *latent.shape[2:])
    mask[:, :, :1] = 0
    return {
        TEXT: {},
        BESIDE: shown,
        "references in another way": {**shown, "reference_latents_method": "index"},
        CONCATENATED: {"concat_latent_image": drawn(*latent.shape, seed=7), "concat_mask": mask},
        "concatenated picture": {"concat_latent_image": drawn(*latent.shape, seed=7)},
        "CLIP vision": {"clip_vision_output": seen},
        SOUND: {"audio_embed": drawn(1, *ALL[architecture].more.get("audio_embed", (3, 4, 8)), seed=11)},
        "a first frame": {"time_dim_replace": drawn(*latent.shape, seed=8)[:, :, :1], "concat_mask": mask},
    }


USUAL = ("SD1.5", "SDXL", "Flux 1", "Flux 2", "Qwen-Image", "Wan 2.1 t2v")
"""Those that differ most in what they are given; the others are compared in the soak."""


@pytest.mark.parametrize(
    "architecture",
    [
        *USUAL,
        *(pytest.param(name, marks=pytest.mark.soak) for name in (*ALL, *VARIANTS) if name not in USUAL),
    ],
)
def test_a_training_step_is_given_what_the_sampler_gives(host: Host, architecture: str) -> None:
    plain, changed = VARIANTS.get(architecture, (architecture, CHANGED.get(architecture, {})))
    model = tiny(plain, **changed)
    if architecture.endswith("inpainting"):
        model.set_inpaint()
    latent, usual = latent_for(model), module(host, "").family_of(model).guidance
    compared: dict[str, set[str]] = {}
    for name, settings in settings_of(plain, latent).items():
        given = conditioning(model, plain, **settings)
        if usual is not None:
            given[0][1]["guidance"] = usual
        try:
            wanted = by_the_sampler(model, given, latent)
        except REFUSED:
            continue
        del wanted["x"], wanted["sigma"]
        found = in_training(host, model, given, latent)
        compared[name] = set(found)
        assert found.keys() == wanted.keys(), name
        assert [key for key in wanted if not same(found[key], wanted[key])] == [], name
    assert TEXT in compared
    if architecture in SHOWN:
        kind, argument = SHOWN[architecture]
        assert argument in compared[kind]


IN_THE_LATENT = ("Wan 2.2 5B", "LTX-Video", "LTX-2", "Cosmos", "Cosmos-Predict2", "HunyuanVideo")
"""Architectures that are given frames in the latent, by a noise mask."""


def tiny_of_pictures(architecture: str) -> Any:
    """A tiny model of videos that begin with a picture."""
    model = tiny(architecture)
    if architecture.startswith("Cosmos"):
        model.image_to_video, model.concat_keys = True, ("mask_inverted",)
    return model


@pytest.mark.parametrize(
    ("architecture", "pace", "side"),
    [
        ("Wan 2.2 5B", 4, 16),
        ("LTX-Video", 8, 32),
        ("LTX-2", 8, 32),
        ("Cosmos", 8, 8),
        ("Cosmos-Predict2", 4, 8),
        ("HunyuanVideo", 4, 8),
    ],
)
def test_the_hosts_node_puts_the_first_frame_into_the_latent(
    host: Host, architecture: str, pace: int, side: int
) -> None:
    """With a VAE that makes of some frames the mean of the first one."""
    given, model = host.module("lycoris_nodes.host.given"), tiny_of_pictures(architecture)
    pixels = torch.rand(1 + 2 * pace, 64, 64, 3)
    shape = (1, model.latent_format.latent_channels, 1, 64 // side, 64 // side)
    vae = SimpleNamespace(
        encode=lambda pixels: torch.cat([one.mean() * torch.ones(shape) for one in pixels[::pace]], 2)
    )
    replaced = architecture == "HunyuanVideo"
    made = given.given_of(model, given.REPLACED if replaced else "first").make(vae, pixels, None)
    latent = made.within(torch.full((*shape[:2], 3, *shape[3:]), 9.0))
    assert (
        torch.equal(latent[:, :, :1], pixels[0].mean() * torch.ones(shape)) and (latent[:, :, 1:] == 9).all()
    )
    assert made.noise_mask.mean((0, 1, 3, 4)).tolist() == [0, 1, 1]
    assert set(made.settings) == ({"guiding_frame_index"} if replaced else set())
    if replaced:
        assert given.given_of(model, "first") is None
    elif architecture.startswith("Cosmos"):
        made = given.given_of(model, "first and last").make(vae, pixels, None)
        assert made.noise_mask.mean((0, 1, 3, 4)).tolist() == [0, 1, 0]
    else:
        with pytest.raises(host.ops.TrainError, match=r"given other frames.*first or none"):
            given.given_of(model, "first and last")


@pytest.mark.parametrize("architecture", IN_THE_LATENT)
def test_given_frames_are_as_the_sampler_gives_them_and_are_not_learned(
    host: Host, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.nested_tensor import NestedTensor
    from comfy.utils import unpack_latents

    training, model = module(host, ""), tiny_of_pictures(architecture)
    video = drawn(1, model.latent_format.latent_channels, FRAMES, 8, 8, seed=9)
    mask = torch.ones(1, 1, FRAMES, 1, 1)
    mask[:, :, [0, -1]] = 0
    latent, noise_mask, parts = video, mask, [mask]
    if architecture == "LTX-2":
        sound = drawn(1, 8, 3, 16, seed=10)
        latent, parts = NestedTensor([video, sound]), [mask, torch.ones_like(sound)]
        noise_mask = NestedTensor(parts)
    text = conditioning(model, architecture, guiding_frame_index=0)
    usual = training.family_of(model).guidance
    if usual is not None:
        text[0][1]["guidance"] = usual
    held = training.latent_of(model, latent, torch.device("cpu"), parts)
    torch.manual_seed(4)
    torch.rand(1)
    noise: Any = torch.randn(held.values.shape)
    if architecture == "LTX-2":
        noise = NestedTensor(unpack_latents(noise, held.shapes))
    wanted = by_the_sampler(model, text, latent, noise=noise, noise_mask=noise_mask, denoise=0.5)
    found: dict[str, Any] = {}

    def noted(x: Tensor, sigma: Tensor, transformer_options: Any, **conds: Any) -> Tensor:
        found.update(x=x, sigma=sigma, **conds)
        # Right where it is learned, and far off where the frame is given.
        return held.values + 1000 * (1 - held.noise_mask)

    monkeypatch.setattr(module(host, "loss"), "sigma_at", lambda sampling, time: wanted["sigma"].clone())
    with training.opened(patcher(model)) as session:
        caption = training.caption_of(model, text, held)
        model.apply_model = noted
        torch.manual_seed(4)
        loss = training.DiffusionLoss(session=session, times=training.Times())
        assert float(loss(session.network, [training.Sample(held, caption)])) == 0
    assert found.keys() == wanted.keys() and found.keys() & {
        "denoise_mask",
        "c_concat",
        "guiding_frame_index",
    }
    assert [key for key in wanted if not same(found[key], wanted[key])] == []
