"""What a model is given in a training step: bitwise what the host's sampler gives it, and learned with."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosting import Host, patcher
from torch import Tensor
from trainable import by_the_sampler, in_a_step, module, same, tiny, trained_into_an_exact_file

from tests.harness.inputs import FURTHER, INPUTS
from tests.harness.zoo import SPECIES

pytestmark = pytest.mark.host

ALL = {**INPUTS, **FURTHER}
FRAMES = 5
"""Frames of a latent of a video."""
SEEN_WIDTH = 1280
"""The width of what a CLIP vision model gives."""
_WAN, _WIDE = {"in_dim": 16, "out_dim": 16}, {"out_dim": 16}
_MARKED = {"in_dim": 20, "out_dim": 16}
CHANGED: Mapping[str, Mapping[str, Any]] = {
    "SDXL": {"adm_in_channels": 12 + 6 * 256},
    "SVD": {"adm_in_channels": 3 * 256},
    "SD2.1 unCLIP": {"adm_in_channels": 2 * 768},
    "Stable Cascade C": {"c_clip_img": 768},
    "Stable Cascade B": {"c_effnet": 16},
    "HiDream": {"in_channels": 16, "out_channels": 16},
    "Omnigen2": {"in_channels": 16},
    "Boogu": {"in_channels": 16},
    "Qwen-Image": {"in_channels": 64, "out_channels": 16},
    "Mage-Flow": {"in_channels": 128, "out_channels": 128},
    "JoyImage": {"in_channels": 16},
    "Krea 2": {"channels": 16},
    "Z-Image": {"in_channels": 16, "siglip_feat_dim": SEEN_WIDTH},
    "Z-Image pixel space": {"siglip_feat_dim": SEEN_WIDTH},
    "Flux 1": {"in_channels": 16, "out_channels": 16},
    "Flux 2": {"in_channels": 128, "out_channels": 128},
    "Kandinsky 5": {"in_visual_dim": 16, "out_visual_dim": 16, "visual_embed_dim": 4 * (2 * 16 + 1)},
    "ACE-Step": {"speaker_embedding_dim": 512},
    "ACE-Step 1.5": {"in_channels": 3 * 64, "timbre_hidden_dim": 64, "audio_acoustic_hidden_dim": 64},
    "Cosmos": {"max_frames": 8},
    "LTX-Video": {"in_channels": 128},
    "LTX-2": {"in_channels": 128},
    "MiniMax-H3": {"latents_dim": 24, "audio_latents_dim": 32},
    **dict.fromkeys(("Wan 2.1 t2v", "Wan S2V", "Wan causal"), _WAN),
    **dict.fromkeys(("Wan SCAIL", "Wan SCAIL 2"), _MARKED),
    **dict.fromkeys(("Wan 2.1 i2v", "WanDancer"), _WIDE),
    "Wan VACE": {"vace_in_dim": 96, **_WAN},
    "Wan camera": {"in_dim_control_adapter": 24, **_WIDE},
    "Wan HuMo": {"audio_token_num": 16, **_WIDE},
    "Wan Animate": {"num_layers": 5, "in_dim": 36, "motion_encoder_dim": 512, **_WIDE},
    "CogVideoX": {"in_channels": 16, "out_channels": 16},
    "HunyuanVideo": {"in_channels": 16, "out_channels": 16},
    "HunyuanVideo 1.5": {"in_channels": 2 * 32 + 1, "out_channels": 32, "vision_in_dim": SEEN_WIDTH},
    "HunyuanImage 2.1 refiner": {"in_channels": 256, "out_channels": 128},
}
"""Tiny models with as many channels as the latents of the real ones, and what is concatenated to them."""
VARIANTS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "SD1.5 inpainting": ("SD1.5", "", {"in_channels": 9}),
    "SDXL inpainting": ("SDXL", "", {"in_channels": 9, **CHANGED["SDXL"]}),
    "SD1.5 InstructPix2Pix": ("SD1.5", "SD15_instructpix2pix", {"in_channels": 8}),
    "SDXL InstructPix2Pix": ("SDXL", "SDXL_instructpix2pix", {"in_channels": 8, **CHANGED["SDXL"]}),
    "SD2 x4 upscaler": (
        "SD2",
        "SD_X4Upscaler",
        {
            "in_channels": 7,
            "num_classes": 1000,
            "num_head_channels": 8,
            "num_heads": -1,
            "disable_self_attentions": None,
        },
    ),
    "Stable Zero123": ("SD1.5", "Stable_Zero123", {"in_channels": 8}),
    "SV3D u": ("SVD", "SV3D_u", {"adm_in_channels": 256}),
    "SV3D p": ("SVD", "SV3D_p", {"adm_in_channels": 5 * 256}),
    "Flux Fill": ("Flux 1", "FluxInpaint", {"in_channels": 96, "out_channels": 16}),
    "Flux control": ("Flux 1", "", {"in_channels": 32, "out_channels": 16}),
    "HunyuanVideo i2v": ("HunyuanVideo", "HunyuanVideoI2V", {"in_channels": 33, "out_channels": 16}),
    "HunyuanVideo SkyReels": (
        "HunyuanVideo",
        "HunyuanVideoSkyreelsI2V",
        {"in_channels": 32, "out_channels": 16},
    ),
    "HunyuanVideo 1.5 upscaler": (
        "HunyuanVideo 1.5",
        "HunyuanVideo15_SR_Distilled",
        {**CHANGED["HunyuanVideo 1.5"], "in_channels": 3 * 32 + 2},
    ),
    "CogVideoX i2v": ("CogVideoX", "CogVideoX_I2V", {"in_channels": 32, "out_channels": 16}),
    "Wan control": ("Wan 2.1 i2v", "WAN21_FunControl2V", {"in_dim": 48, **_WIDE}),
    "Wan 2.2 control": ("Wan 2.1 i2v", "", {"in_dim": 52, **_WIDE}),
    "Wan 2.2 camera": ("Wan camera", "WAN22_Camera", {"in_dim": 36, **CHANGED["Wan camera"]}),
    "Wan HuMo 1.7B": ("Wan HuMo", "", {"audio_token_num": 16, **_WAN}),
    "Kandinsky 5 picture": ("Kandinsky 5", "Kandinsky5Image", {}),
}
"""Architectures with the layers of another: that one, the host's configuration, and how the tiny model
differs."""
TEXTS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Stable Audio", "Stable Audio 3"), (5, 768)),
    "Stable Cascade C": (5, 12),
    "SeedVR2": (5, 5120),
}
"""Texts as wide as the real ones, where the host puts something of that width behind them."""
TEXT, BESIDE, CONCATENATED, SOUND, SEEN = "text", "references", "concatenated", "sound", "CLIP vision"
REFUSED = (RuntimeError, AttributeError, LookupError, TypeError, ValueError, ArithmeticError)
"""How the host's models answer to what they do not take."""


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning(model: Any, architecture: str, **more: Any) -> list[Any]:
    """A text as the host's encoders give it, with all that one of them says beside it."""
    words = TEXTS.get(architecture) or ALL[architecture].text or (5, 20)
    settings: dict[str, Any] = {"pooled_output": drawn(1, 12, seed=2)}
    settings["conditioning_llama3"] = drawn(1, 2, words[0], 20, seed=3)
    settings["attention_mask"] = torch.ones(1, words[0], dtype=torch.long)
    lyrics = torch.arange(4)[None] if architecture == "ACE-Step" else drawn(1, 4, 12, seed=37)
    settings["conditioning_lyrics"] = lyrics
    settings["text_input_ids"] = torch.arange(5, 15)[None]
    if architecture == "HunyuanVideo 1.5":
        # Its encoder leaves out a mask of ones.
        del settings["attention_mask"]
    # LyCORIS Training Pictures says these too, and no model takes them.
    settings |= {"lycoris_caption": "mystyle, a boat", "lycoris_trigger": "mystyle"}
    # What the captions say for samplers is not for a training, see `caption_of`.
    return [[drawn(1, *words, seed=4), {**settings, **more}]]


PARTS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "MiniMaxH3": ((1, 24, FRAMES, 4, 4), (1, 32, 2, 6)),
    "LTXAV": ((1, 128, FRAMES, 8, 8), (1, 8, 3, 16)),
    "TripoSplat": ((1, 16, 4), (1, 1, 5)),
}
"""The shapes of latents of several parts, by the host's class."""

SIDES: Mapping[str, tuple[int, ...]] = {
    "HiDreamO1": (64, 64),
    "ZImagePixelSpace": (16, 16),
    "StableCascade_B": (32, 32),
    "ACEStep": (16, 8),
    "Krea2": (1, 8, 8),
}
"""The sides of latents of other sizes than the usual ones, by the host's class."""


def latent_for(model: Any) -> Any:
    """An empty latent."""
    if shapes := PARTS.get(type(model).__name__):
        from comfy.nested_tensor import NestedTensor

        return NestedTensor([torch.zeros(shape) for shape in shapes])
    kind = model.latent_format
    usual = {1: (16,), 2: (8, 8), 3: (FRAMES, 8, 8)}[kind.latent_dimensions]
    sides = SIDES.get(type(model).__name__, usual)
    return torch.zeros(1, kind.latent_channels, *sides)


def in_training(
    host: Host, model: Any, given: list[Any], latent: Any, noise_mask: Tensor | None = None
) -> dict[str, Any]:
    """What the model is called with in a training step on a latent of this shape."""
    from comfy.utils import pack_latents as packed

    training = module(host, "")
    seen: list[dict[str, Any]] = []

    def noted(x: Tensor, sigma: Tensor, transformer_options: Any, **conds: Any) -> Tensor:
        seen.append(conds)
        return torch.zeros_like(x)

    with training.opened(patcher(model)) as session:
        parts = latent.unbind() if latent.is_nested else [latent]
        values, shapes = packed(list(parts))
        held = (
            training.Latent(torch.ones_like(values), shapes)
            if latent.is_nested
            else training.Latent(torch.ones_like(latent), (latent.shape,), noise_mask)
        )
        caption = training.caption_of(model, given, held)
        model.apply_model = noted
        try:
            sample = training.Sample(held, caption)
            training.DiffusionLoss(session=session, times=training.Times())(session.network, [sample])
        finally:
            del model.apply_model
    return seen[0]


Settings = dict[str, Any]


def seen_picture(seed: int = 9) -> Any:
    """What a CLIP vision model gives for a picture."""
    return SimpleNamespace(
        penultimate_hidden_states=drawn(1, 4, SEEN_WIDTH, seed=seed),
        last_hidden_state=drawn(1, 4, SEEN_WIDTH, seed=seed),
        image_embeds=drawn(1, 768, seed=seed),
        image_sizes=[(3, 32, 32)],
    )


def around(latent: Tensor) -> Tensor:
    """A mask that gives the first frame, or the first row of a picture."""
    mask = torch.ones(1, 1, *latent.shape[2:])
    mask[:, :, :1] = 0
    return mask


def beside(latent: Tensor) -> Settings:
    smaller = (*latent.shape[:2], *(max(1, side // 2) for side in latent.shape[2:]))
    return {"reference_latents": [drawn(*latent.shape, seed=5), drawn(*smaller, seed=6)]}


def like(name: str, **more: Any) -> Callable[[Tensor], Settings]:
    """A setting that is a tensor like the latent, and others that are as they are."""
    return lambda latent: {name: drawn(*latent.shape, seed=7), **more}


def sized(**shapes: tuple[int, ...]) -> Callable[[Tensor], Settings]:
    """Settings that are tensors of these shapes."""
    return lambda latent: {name: drawn(*shape, seed=11) for name, shape in shapes.items()}


def control_frames(latent: Tensor) -> Settings:
    """Two clips of control frames, with masks, as two WanVaceToVideo in a row give them."""
    frames = torch.cat([drawn(*latent.shape, seed=seed) for seed in (12, 13)], 1)
    masks = torch.rand(1, 64, *latent.shape[2:], generator=torch.Generator().manual_seed(14))
    return {"vace_frames": [frames, 2 * frames], "vace_mask": [masks, 1 - masks], "vace_strength": [1.0, 0.5]}


def identities(latent: Tensor) -> Settings:
    masks = (drawn(1, FRAMES, 28, *latent.shape[3:], seed=15) > 0).float()
    alone = (drawn(1, 1 + FRAMES, 28, *latent.shape[3:], seed=16) > 0).float()
    marked = {"driving_mask_28ch": masks, "ref_mask_28ch": alone, "ref_mask_flag": True}
    shown = drawn(*latent.shape[:2], 1, *latent.shape[3:], seed=38)
    return {**like("pose_video_latent")(latent), "reference_latents": [shown], **marked}


def keyframes(latent: Any) -> Settings:
    frame = {"resolved_frame_index": 0, "latent": drawn(1, 24, 1, 4, 4, seed=17)}
    return {"minimax_keyframes": [frame], "minimax_frame_count": 22}


def quoted(latent: Any) -> Settings:
    picture = {"kind": "image", "latent_h": 4, "latent_w": 4, "latent": drawn(1, 24, 1, 4, 4, seed=18)}
    sound = {"kind": "audio", "ref_audio_t": 6, "audio_latent": drawn(1, 32, 2, 6, seed=19)}
    said = {"minimax_visual_cond_noise_aug": 0.1, "minimax_audio_cond_noise_aug": 0.2}
    return {"minimax_refs": [picture, sound], "minimax_token_tags": torch.arange(5), **said}


def unclip(*seeds: int) -> Settings:
    how = {"strength": 0.7, "noise_augmentation": 0.1}
    return {"unclip_conditioning": [{"clip_vision_output": seen_picture(seed), **how} for seed in seeds]}


def omni(latent: Tensor) -> Settings:
    words = [drawn(1, 3, 20, seed=seed) for seed in (22, 23)]
    seen = [seen_picture(24), None]
    return {**beside(latent), "reference_latents_text_embeds": words, "clip_vision_outputs": seen}


USUAL_KINDS: Mapping[str, Callable[[Tensor], Settings]] = {
    TEXT: lambda latent: {},
    BESIDE: beside,
    "references in another way": lambda latent: {**beside(latent), "reference_latents_method": "index"},
    CONCATENATED: lambda latent: {**like("concat_latent_image")(latent), "concat_mask": around(latent)},
    "concatenated picture": like("concat_latent_image"),
    SEEN: lambda latent: {"clip_vision_output": seen_picture()},
}
"""What nodes of the host say of pictures beside a text, and every architecture is given."""
WAN = tuple(name for name in (*ALL, *VARIANTS) if name.startswith("Wan"))
OWN_KINDS: Mapping[str, tuple[Callable[[Any], Settings], Mapping[str, str]]] = {
    "control frames and masks": (control_frames, {"Wan VACE": "vace_context"}),
    "a camera": (
        lambda latent: {"camera_conditions": drawn(1, 24, *latent.shape[2:3], 64, 64, seed=25)},
        dict.fromkeys(("Wan camera", "Wan 2.2 camera"), "camera_conditions"),
    ),
    "a pose": (
        like("pose_video_latent"),
        dict.fromkeys(("Wan Animate", "Wan SCAIL", "Wan SCAIL 2"), "pose_latents"),
    ),
    "a face": (sized(face_video_pixels=(1, 3, 17, 8, 8)), {"Wan Animate": "face_pixel_values"}),
    "coloured identities": (identities, {"Wan SCAIL 2": "sam_latents"}),
    "a pose and what came before": (
        lambda latent: {**like("control_video")(latent), **like("reference_motion")(latent)},
        {"Wan S2V": "control_video"},
    ),
    "subjects": (like("time_dim_concat"), {"Wan 2.1 t2v": "time_dim_concat"}),
    "clips in the context": (
        lambda latent: {"context_latents": beside(latent)["reference_latents"]},
        {"Wan 2.1 t2v": "context_latents"},
    ),
    "a controlled clip": (
        lambda latent: {"concat_latent_image": torch.cat([drawn(*latent.shape, seed=26)] * 2, 1)},
        {"Wan control": "c_concat"},
    ),
    "a controlled clip with a mask": (
        lambda latent: {
            "concat_latent_image": torch.cat([drawn(*latent.shape, seed=26)] * 2, 1),
            "concat_mask": around(latent).expand(1, 4, *latent.shape[2:]),
            "concat_mask_index": 16,
            "reference_latents": [drawn(1, 16, 1, *latent.shape[3:], seed=27)],
        },
        {"Wan 2.2 control": "c_concat"},
    ),
    SOUND: (
        sized(audio_embed=(1, 25, 16, 8)),
        {"Wan S2V": "audio_embed"},
    ),
    "a voice": (
        sized(audio_embed=(1, FRAMES, 8, 5, 1280), reference_latents=(1, 1, 16, 1, 8, 8)),
        dict.fromkeys(("Wan HuMo", "Wan HuMo 1.7B"), "audio_embed"),
    ),
    "music": (
        lambda latent: {
            **sized(audio_embed=(1, 6, 8))(latent),
            "fps": 7.5,
            "audio_inject_scale": 0.8,
            "clip_vision_output": seen_picture(),
            "clip_vision_output_ref": seen_picture(28),
        },
        {"WanDancer": "audio_embed"},
    ),
    "keyframes": (keyframes, {"MiniMax-H3": "minimax_payload"}),
    "references of pictures and sound": (quoted, {"MiniMax-H3": "minimax_payload"}),
    "a picture as a latent": (
        lambda latent: {"reference_latents": [drawn(1, 8, 1, 2, seed=36)]},
        {"TripoSplat": "ref_latents"},
    ),
    "a first frame and what is seen of it": (
        lambda latent: {**USUAL_KINDS[CONCATENATED](latent), **USUAL_KINDS[SEEN](latent)},
        dict.fromkeys(
            ("Wan 2.1 i2v", "Wan camera", "Wan 2.2 camera", "Wan Animate", "WanDancer", "HunyuanVideo 1.5"),
            "clip_fea",
        ),
    ),
    "a frame rate": (
        lambda latent: {"frame_rate": 12.0},
        dict.fromkeys(("Cosmos", "Cosmos-Predict2"), "fps"),
    ),
    "guides": (
        lambda latent: {
            "keyframe_idxs": torch.arange(3 * 4 * 2).reshape(1, 3, 4, 2),
            "guide_attention_entries": [{"pre_filter_count": 4, "strength": 0.5, "latent_shape": [1, 2, 2]}],
            "frame_rate": 24,
        },
        dict.fromkeys(("LTX-Video", "LTX-2"), "keyframe_idxs"),
    ),
    "a voice to be like": (
        lambda latent: {"ref_audio": {"tokens": drawn(1, 3, 128, seed=29)}},
        {"LTX-2": "ref_audio"},
    ),
    "a first frame": (
        lambda latent: {
            "time_dim_replace": drawn(*latent.shape, seed=8)[:, :, :1],
            "concat_mask": around(latent),
        },
        dict.fromkeys(("Kandinsky 5", "Kandinsky 5 picture"), "time_dim_replace"),
    ),
    "a frame in the text": (
        lambda latent: {"ref_latent": drawn(1, 16, 1, 8, 8, seed=30), "guiding_frame_index": 0},
        dict.fromkeys(("HunyuanVideo", "HunyuanVideo i2v", "HunyuanVideo SkyReels"), "ref_latent"),
    ),
    "a small clip with noise": (
        lambda latent: {
            "concat_latent_image": drawn(1, 66, *latent.shape[2:], seed=31),
            "noise_augmentation": 0.4,
        },
        {"HunyuanVideo 1.5 upscaler": "c_concat"},
    ),
    "a picture with noise": (
        like("concat_latent_image", noise_augmentation=0.4),
        {"HunyuanImage 2.1 refiner": "c_concat"},
    ),
    "a small picture": (
        lambda latent: {"concat_image": drawn(1, 3, 4, 4, seed=32), "noise_augmentation": 0.1},
        {"SD2 x4 upscaler": "c_concat"},
    ),
    "a camera around a thing": (
        like("concat_latent_image", elevation=10.0, azimuth=20.0, augmentation_level=0.1),
        {"SV3D p": "c_concat", "SV3D u": "c_concat"},
    ),
    "motion": (
        like(
            "concat_latent_image",
            fps=7,
            time_conditioning=drawn(1, 1, 24),
            motion_bucket_id=90,
            augmentation_level=0.1,
        ),
        {"SVD": "c_concat"},
    ),
    "a prior": (sized(stable_cascade_prior=(1, 16, 2, 2)), {"Stable Cascade B": "effnet"}),
    "pictures in the place of a text": (lambda latent: unclip(20, 21), {"Stable Cascade C": "clip_img"}),
    "pictures as an embedding": (lambda latent: unclip(20), {"SD2.1 unCLIP": "y"}),
    "pictures of which the text speaks": (
        omni,
        dict.fromkeys(("Z-Image", "Lumina 2", "Z-Image pixel space"), "siglip_feats"),
    ),
    "a picture of which the text speaks": (lambda latent: unclip(20), {"Z-Image": "siglip_feats"}),
    "what is to be restored": (sized(condition=(1, 17, FRAMES, 8, 8)), {"SeedVR2": "condition"}),
    "what is to be enlarged": (
        lambda latent: {"lq_latent": drawn(1, 4, 2, 2, seed=33), "degrade_sigma": torch.tensor([0.3])},
        {"PiD": "lq_latent"},
    ),
    "a timbre": (
        lambda latent: {"reference_audio_timbre_latents": [drawn(*latent.shape, seed=34)]},
        {"ACE-Step 1.5": "is_covers"},
    ),
    "codes of a song": (lambda latent: {"audio_codes": [[3, 1, 4]]}, {"ACE-Step 1.5": "audio_codes"}),
    "the strength of lyrics": (lambda latent: {"lyrics_strength": 0.5}, {"ACE-Step": "lyrics_strength"}),
    "pixels": (
        lambda latent: {"reference_latents": [drawn(1, 64, 96, 3, seed=35).sigmoid()]},
        {"HiDream-O1": "ref_patches"},
    ),
}
"""What only some architectures are given: of each kind the settings, and the argument that they become."""
NEEDED: Mapping[str, str] = {"PiD": "what is to be enlarged", "SeedVR2": "what is to be restored"}
"""Of these kinds, one that an architecture is not trained without."""
SHOWN: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("Flux 1", "Flux 2", "Omnigen2", "Qwen-Image", "Krea 2"), (BESIDE, "ref_latents")),
    **dict.fromkeys(("Mage-Flow", "JoyImage", "Boogu"), (BESIDE, "ref_latents")),
    **dict.fromkeys(("Wan 2.1 i2v", "Wan camera", "SVD"), (CONCATENATED, "c_concat")),
    **dict.fromkeys(
        (
            name
            for name in VARIANTS
            if name.endswith(("painting", "Pix2Pix", "Fill", "Flux control", "i2v", "SkyReels", "123"))
        ),
        (CONCATENATED, "c_concat"),
    ),
    "HiDream": (CONCATENATED, "image_cond"),
    "HunyuanVideo 1.5": (SEEN, "clip_fea"),
}
"""Of the usual kinds, one that an architecture takes, and the argument that it becomes."""


def settings_of(architecture: str, latent: Any) -> dict[str, Settings]:
    """What nodes of the host say of pictures, clips and sounds beside a text, by the kind of node."""
    own = {name: made for name, (made, takers) in OWN_KINDS.items() if architecture in takers}
    always = own[NEEDED[architecture]](latent) if architecture in NEEDED else {}
    return {name: {**always, **made(latent)} for name, made in {**USUAL_KINDS, **own}.items()}


USUAL = ("SD1.5", "SDXL", "Flux 1", "Flux 2", "Qwen-Image", "Wan 2.1 t2v")
"""Those that differ most in what they are given; the others are compared in the soak."""


def narrow_faces(model: Any, side: int) -> None:
    """Give a tiny Wan Animate a narrow network for faces, of its own layers, for so many pixels a side."""
    import comfy.ldm.wan.model_animate as own

    app, width, step = model.diffusion_model.motion_encoder.enc.net_app, 8, side // 8
    last = own.EqualConv2d(width, app.convs[-1].weight.shape[0], 4, bias=False)
    first = own.EqualConv2d(3, width, step, stride=step)
    app.convs = torch.nn.ModuleList([first, own.ResBlock(width, width), last])
    draw = torch.Generator().manual_seed(5)
    for parameter in app.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw)


def tiny_of(architecture: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str]:
    """A tiny model of an architecture or a variant, and the architecture whose layers it has."""
    plain, config, changed = VARIANTS.get(architecture, (architecture, "", CHANGED.get(architecture, {})))
    if config:
        monkeypatch.setitem(SPECIES, plain, replace(SPECIES[plain], config=config))
    model = tiny(plain, cut=not plain.startswith("Wan"), **changed)
    if plain == "Wan Animate":
        narrow_faces(model, 8)
    if architecture.endswith("inpainting"):
        model.set_inpaint()
    if plain == "ACE-Step 1.5":
        # The zoo leaves the levels of its codes empty.
        codes = model.diffusion_model.tokenizer.quantizer
        for name, buffer in type(codes)(dim=6, levels=[8, 8, 8, 5, 5, 5], num_quantizers=1).named_buffers():
            codes.get_buffer(name).copy_(buffer)
    if plain == "SD2.1 unCLIP":
        # The zoo leaves its noise levels empty.
        for buffer in model.noise_augmentor.buffers():
            buffer.fill_(0.5)
    return model, plain


@pytest.mark.parametrize(
    "architecture",
    [
        *USUAL,
        *(pytest.param(name, marks=pytest.mark.soak) for name in (*ALL, *VARIANTS) if name not in USUAL),
    ],
)
def test_a_training_step_is_given_what_the_sampler_gives(
    host: Host, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plain = tiny_of(architecture, monkeypatch)
    latent, usual = latent_for(model), module(host, "").trained_family(model).guidance
    compared: dict[str, set[str]] = {}
    for name, settings in settings_of(architecture, latent).items():
        given = conditioning(model, plain, **settings)
        if usual is not None:
            given[0][1]["guidance"] = usual
        try:
            wanted = by_the_sampler(model, given, latent)
        except REFUSED:
            if name in OWN_KINDS:
                raise
            continue
        del wanted["x"], wanted["sigma"]
        found = in_training(host, model, given, latent)
        compared[name] = set(found)
        assert found.keys() == wanted.keys(), name
        assert [key for key in wanted if not same(found[key], wanted[key])] == [], name
    taken = [SHOWN[architecture]] if architecture in SHOWN else []
    taken += [
        (name, takers[architecture]) for name, (_, takers) in OWN_KINDS.items() if architecture in takers
    ]
    assert TEXT in compared
    assert [kind for kind, argument in taken if argument not in compared[kind]] == []


IN_THE_LATENT = ("Wan 2.2 5B", "LTX-Video", "LTX-2", "Cosmos", "Cosmos-Predict2", "HunyuanVideo")
"""Architectures that are given frames in the latent, by a noise mask."""
FRAMES_GIVEN = "frames in the latent"
READ_ALONE = {
    ("Lumina 2", "pictures of which the text speaks"),
    ("Kandinsky 5 picture", "a first frame"),
    ("HunyuanVideo i2v", "a frame in the text"),
    ("HunyuanVideo SkyReels", "a frame in the text"),
}
"""What the host's class of an architecture reads for another, whose network has the layers for it."""
LEARNED = [
    *((name, kind) for name, (kind, _) in SHOWN.items()),
    *((name, kind) for kind, (_, takers) in OWN_KINDS.items() for name in takers),
    *((name, FRAMES_GIVEN) for name in IN_THE_LATENT),
]


@pytest.mark.soak
@pytest.mark.parametrize(("architecture", "kind"), [one for one in LEARNED if one not in READ_ALONE])
def test_what_is_given_is_learned_with_and_the_file_is_exact_in_the_host(
    host: Host, architecture: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if kind == FRAMES_GIVEN:
        model, plain = tiny_of_pictures(architecture), architecture
    else:
        model, plain = tiny_of(architecture, monkeypatch)
    empty = latent_for(model)
    parts = [drawn(*part.shape, seed=40) for part in (empty.unbind() if empty.is_nested else [empty])]
    latent: dict[str, Any] = {"samples": type(empty)(parts) if empty.is_nested else parts[0]}
    if kind in (FRAMES_GIVEN, "guides"):
        masks = [around(parts[0]), *map(torch.ones_like, parts[1:])]
        latent["noise_mask"] = type(empty)(masks) if empty.is_nested else masks[0]
    settings = {} if kind == FRAMES_GIVEN else settings_of(architecture, empty)[kind]
    given = conditioning(model, plain, **settings)
    # Its loss of 6.80 is still the same after 6 steps, and 6.53 after 24.
    steps = 24 if architecture == "HiDream-O1" else 6
    trained_into_an_exact_file(host, model, tmp_path, {"latents": [latent], "positive": [given]}, steps)


OF_TEXTS = {"pooled_output", "attention_mask", "cross_attn", "t5xxl_ids", "t5xxl_weights", "text_input_ids"}
OF_TEXTS |= {f"{name}_mt5xl" for name in ("conditioning", "attention_mask")} | {"unprocessed_ltxav_embeds"}
OF_TEXTS |= {f"conditioning_{name}" for name in ("llama3", "byt5small", "lyrics")} | {"seconds_start"}
OF_TEXTS |= {"seconds_total", "guidance", "aesthetic_score", "prompt_type", "cross_attn_controlnet"}
OF_SONGS = {"audio_codes", "lyrics_strength", "minimax_token_tags"}
"""What text encoders give for the words of songs and clips."""
OF_SAMPLERS = {"noise", "device", "seed", "denoise_mask", "latent_image", "latent_shapes", "noise_concat"}
OF_SAMPLERS |= {"width", "height", "crop_w", "crop_h", "target_width", "target_height", "aspect_ratio"}
OF_SAMPLERS |= {"area", "attention_mask_img_shape", "ofs", "unclip_noise_augment_merge"}
"""What the host's models read that is not of pictures, clips or sounds. The last is for several pictures,
for which the host draws noise without a seed."""
NOT_TRAINED = ("Lotus", "WAN21_FlowRVS", "SV3D_p", "RT_DETR_v4", "SAM3", "DepthAnything3")
"""Models that no noise is added for in training, or that detect."""


def test_all_that_the_hosts_models_read_is_compared(host: Host) -> None:
    import comfy.model_base as base
    import comfy.supported_models as configs

    latent, beside = torch.zeros(1, 16, FRAMES, 8, 8), module(host, "samples").BESIDE
    given: dict[str, set[str]] = {}
    for name in (*ALL, *VARIANTS):
        plain, config, _ = VARIANTS.get(name, (name, "", {}))
        made = getattr(configs, config or SPECIES[plain].config).get_model.__code__.co_names
        told = {key for settings in settings_of(name, latent).values() for key in settings}
        for kind in made:
            given.setdefault(kind, set()).update(told)
    missing: dict[str, set[str]] = {}
    for name, kind in vars(base).items():
        if isinstance(kind, type) and issubclass(kind, base.BaseModel) and name not in NOT_TRAINED:
            # What a class inherits is compared where it is from.
            read = set(re.findall(r'kwargs(?:\.get\(|\[)"(\w+)"', inspect.getsource(kind)))
            # What is not of the text stays where a caption is dropped.
            assert read - OF_TEXTS - OF_SAMPLERS <= {*beside, *OF_SONGS}, name
            if left := read - given.get(name, set()) - OF_TEXTS - OF_SAMPLERS:
                missing[name] = left
    assert missing == {}


def tiny_of_pictures(architecture: str) -> Any:
    """A tiny model of videos that begin with a picture."""
    beside: dict[str, Any] = {"in_channels": 16 + 1} if architecture.startswith("Cosmos") else {}
    model = tiny(architecture, **CHANGED.get(architecture, {}), **beside)
    if beside:
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
    given, node = host.module("lycoris_nodes.host.given"), host.module("lycoris_nodes.host.families.node")
    model = tiny_of_pictures(architecture)
    pixels, beside = torch.rand(1 + 2 * pace, 64, 64, 3), node.Beside()
    shape = (1, model.latent_format.latent_channels, 1, 64 // side, 64 // side)
    vae = SimpleNamespace(
        encode=lambda pixels: torch.cat([one.mean() * torch.ones(shape) for one in pixels[::pace]], 2)
    )
    replaced = architecture == "HunyuanVideo"
    made = given.given_of(model, node.REPLACED if replaced else "first").make(vae, pixels, None, beside)
    latent = made.within(torch.full((*shape[:2], 3, *shape[3:]), 9.0))
    assert (
        torch.equal(latent[:, :, :1], pixels[0].mean() * torch.ones(shape)) and (latent[:, :, 1:] == 9).all()
    )
    assert made.noise_mask.mean((0, 1, 3, 4)).tolist() == [0, 1, 1]
    assert set(made.settings) == ({"guiding_frame_index"} if replaced else set())
    if replaced:
        assert given.given_of(model, "first") is None
    elif architecture.startswith("LTX"):
        # See `test_guides_are_behind_the_clip_as_the_hosts_nodes_put_them`.
        assert given.given_of(model, "first and last").ends == "first and last"
    elif architecture.startswith("Cosmos"):
        made = given.given_of(model, "first and last").make(vae, pixels, None, beside)
        assert made.noise_mask.mean((0, 1, 3, 4)).tolist() == [0, 1, 0]
    else:
        with pytest.raises(host.ops.TrainError, match=r"given other frames.*first or none"):
            given.given_of(model, "first and last")


@pytest.mark.parametrize("architecture", IN_THE_LATENT)
def test_given_frames_are_as_the_sampler_gives_them_and_are_not_learned(
    host: Host, architecture: str
) -> None:
    from comfy.nested_tensor import NestedTensor

    model = tiny_of_pictures(architecture)
    video = drawn(1, model.latent_format.latent_channels, FRAMES, 8, 8, seed=9)
    mask = torch.ones(1, 1, FRAMES, 1, 1)
    mask[:, :, [0, -1]] = 0
    latent, noise_mask, parts = video, mask, [mask]
    if architecture == "LTX-2":
        sound = drawn(1, 8, 3, 16, seed=10)
        latent, parts = NestedTensor([video, sound]), [mask, torch.ones_like(sound)]
        noise_mask = NestedTensor(parts)
    text = conditioning(model, architecture, guiding_frame_index=0)
    usual = module(host, "").trained_family(model).guidance
    if usual is not None:
        text[0][1]["guidance"] = usual
    wanted, found = in_a_step(host, model, text, latent, parts, noise_mask=noise_mask, denoise=0.5)
    assert found.keys() == wanted.keys() and found.keys() & {
        "denoise_mask",
        "c_concat",
        "guiding_frame_index",
    }
    assert [key for key in wanted if not same(found[key], wanted[key])] == []
