"""What a model is given in a training step beside its input: bitwise what the host's sampler gives it."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosting import Host, patcher
from torch import Tensor
from trainable import module, same, tiny

from tests.harness import zoo
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
TEXTS: Mapping[str, tuple[int, ...]] = dict.fromkeys(("Stable Audio", "Stable Audio 3"), (5, 768))
"""Texts as wide as the real ones, where the host puts something of that width behind them."""
TEXT, BESIDE, CONCATENATED = "text", "references", "concatenated"
SHOWN: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("Flux 1", "Flux 2", "Omnigen2", "Qwen-Image", "Krea 2"), (BESIDE, "ref_latents")),
    **dict.fromkeys(("Mage-Flow", "JoyImage", "Boogu"), (BESIDE, "ref_latents")),
    **dict.fromkeys(("Wan 2.1 i2v", "Wan camera", "SVD", "Kandinsky 5"), (CONCATENATED, "c_concat")),
    "HiDream": (CONCATENATED, "image_cond"),
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
    # What the captions say for samplers is not for a training, see `caption_of`.
    return [[drawn(1, *words, seed=4), {**settings, **more}]]


def latent_for(model: Any) -> Tensor:
    """An empty latent."""
    kind = model.latent_format
    sides = {1: (16,), 2: (8, 8), 3: (FRAMES, 8, 8)}[kind.latent_dimensions]
    return torch.zeros(1, kind.latent_channels, *sides)


def by_the_sampler(host: Host, model: Any, given: list[Any], latent: Tensor) -> dict[str, Any]:
    """What the model is called with in the first step of KSampler."""
    import comfy.sample

    seen: list[dict[str, Any]] = []

    def noted(apply: Any, told: dict[str, Any]) -> Tensor:
        seen.append(told["c"])
        return torch.zeros_like(told["input"])

    sampled = patcher(model)
    sampled.set_model_unet_function_wrapper(noted)
    with torch.inference_mode():
        comfy.sample.sample(
            *(sampled, torch.randn(latent.shape), 1, 1.0, "euler", "simple", given, given, latent),
            seed=0,
            disable_pbar=True,
        )
    return {name: value for name, value in seen[0].items() if name not in ("transformer_options", "control")}


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


def settings_of(model: Any, latent: Tensor) -> dict[str, dict[str, Any]]:
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
        "a first frame": {"time_dim_replace": drawn(*latent.shape, seed=8)[:, :, :1], "concat_mask": mask},
    }


USUAL = ("SD1.5", "SDXL", "Flux 1", "Flux 2", "Qwen-Image", "Wan 2.1 t2v")
"""Those that differ most in what they are given; the others are compared in the soak."""


@pytest.mark.parametrize(
    "architecture",
    [
        *USUAL,
        *(pytest.param(name, marks=pytest.mark.soak) for name in (*INPUTS, *FURTHER) if name not in USUAL),
    ],
)
def test_a_training_step_is_given_what_the_sampler_gives(host: Host, architecture: str) -> None:
    if not zoo.supported(architecture):
        pytest.skip("an older host does not have it")
    model = tiny(architecture, **CHANGED.get(architecture, {}))
    latent, usual = latent_for(model), module(host, "").family_of(model).guidance
    compared: dict[str, set[str]] = {}
    for name, settings in settings_of(model, latent).items():
        given = conditioning(model, architecture, **settings)
        if usual is not None:
            given[0][1]["guidance"] = usual
        try:
            wanted = by_the_sampler(host, model, given, latent)
        except REFUSED:
            continue
        found = in_training(host, model, given, latent)
        compared[name] = set(found)
        assert found.keys() == wanted.keys(), name
        assert [key for key in wanted if not same(found[key], wanted[key])] == [], name
    assert TEXT in compared
    if architecture in SHOWN:
        kind, argument = SHOWN[architecture]
        assert argument in compared[kind]
