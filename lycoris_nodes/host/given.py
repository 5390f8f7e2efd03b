"""What a model is given beside a text: the ends of a clip, what surrounds a hole in a picture, clips that
control it, a reference, and its sound.

The host's own nodes make it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nodes
import torch
from comfy.clip_vision import Output
from torch import Tensor

from ...lycoris_ops import TrainError
from .sampling import own_node
from .training import NOISE_MASK

Settings = dict[str, Any]
REPLACED = "first, v2 (replace)"
ENDS = ("first", "first and last", REPLACED, "none")
"""Which frames of a clip an image-to-video model is given. The third is for HunyuanVideo's second
image-to-video model, whose weights have the shapes of the text-to-video model's."""
OF_PICTURES = ("HunyuanVideoSkyreelsI2V", "SVD_img2vid")
"""Image-to-video models that the host does not mark as such."""
OF_BOTH = ("WAN22", "LTXV", "LTXAV")
"""Models that are for text-to-video as well as image-to-video."""
_NODES: Mapping[str, str] = {
    "HunyuanVideoI2V": "HunyuanImageToVideo",
    "Kandinsky5": "Kandinsky5ImageToVideo",
    "WAN22": "Wan22ImageToVideoLatent",
    **dict.fromkeys(("LTXV", "LTXAV"), "LTXVImgToVideo"),
    "WAN21_Vace": "WanVaceToVideo",
    "WAN21_Camera": "WanCameraImageToVideo",
    "WAN21_HuMo": "WanHuMoImageToVideo",
    "WAN22_S2V": "WanSoundImageToVideo",
    "WAN22_Animate": "WanAnimateToVideo",
    "WAN22_WanDancer": "WanDancerVideo",
    **dict.fromkeys(("WAN21_SCAIL", "WAN21_SCAIL2"), "WanSCAILToVideo"),
}
_OF_MARKED: Mapping[str, str] = {
    "WAN21": "WanImageToVideo",
    "CosmosVideo": "CosmosImageToVideoLatent",
    "CosmosPredict2": "CosmosPredict2ImageToVideoLatent",
}
"""The nodes of models that the host marks as image-to-video."""
_OF_CHANNELS: Mapping[int, str] = {48: "WanFunControlToVideo", 52: "Wan22FunControlToVideo"}
"""The nodes of Wan models with this many channels."""
UNMADE: Mapping[str, tuple[str, str, bool]] = {
    "SeedVR2": ("condition", "SeedVR2Conditioning", True),
    "PiD": ("lq_latent", "PiDConditioning", True),
    "WAN21_Camera": ("camera_conditions", "WanCameraImageToVideo", False),
    "WAN22_WanDancer": ("audio_embed", "WanDancerVideo", False),
    "SVD_img2vid": ("concat_latent_image", "SVD_img2vid_Conditioning", False),
    "SD_X4Upscaler": ("concat_image", "SD_4XUpscale_Conditioning", False),
    "SD21UNCLIP": ("unclip_conditioning", "unCLIPConditioning", False),
    "StableCascade_B": ("stable_cascade_prior", "StableCascade_StageB_Conditioning", False),
    "HunyuanImage21Refiner": ("concat_latent_image", "HunyuanRefinerLatent", False),
    "HunyuanVideo15_SR_Distilled": ("concat_latent_image", "HunyuanVideo15SuperResolution", False),
}
"""Settings of a conditioning that are not made from a folder, by the host's class: the setting, the node that
makes it, and whether the model cannot run without it. Else the host itself takes zeros for it."""
SEEN = ("clip_vision_output", "clip_vision_start_image", "clip_vision_end_image")
"""The inputs of these nodes that take the output of a CLIP vision model. The third is for the last frame."""
_TAKEN = ("penultimate_hidden_states", "last_hidden_state")
"""The outputs of a CLIP vision model that video models use. The states of all layers are far larger."""
See = Callable[[Tensor], Any]
"""Gives the output of a CLIP vision model for a picture (1, H, W, 3)."""
_OF_LAST: Mapping[str, str] = {
    "WanImageToVideo": "WanFirstLastFrameToVideo",
    **{name: name for name in _OF_MARKED.values() if name.startswith("Cosmos")},
}
"""The nodes that take a last frame too."""


@dataclass(frozen=True)
class Beside:
    """What belongs to a clip.

    Others that control it (F, H, W, 3), a reference (1, H, W, 3), and what an audio encoder gives for its
    sound.
    """

    controls: Sequence[Tensor] = ()
    reference: Tensor | None = None
    heard: Any = None


@dataclass(frozen=True)
class Takes:
    """The inputs of a node for what belongs to a clip."""

    controls: tuple[str, ...] = ()
    reference: str = ""
    masks: str = ""
    """For the mask of the clip: white is to be made, and black is kept from the first control clip."""
    hears: bool = False
    ahead: Callable[[Settings], Tensor] | None = None
    """Where the reference is found that the model makes again in front of the clip."""


_HEARD = "audio_encoder_output"
_TAKES: Mapping[str, Takes] = {
    "WanVaceToVideo": Takes(
        ("control_video",),
        "reference_image",
        "control_masks",
        ahead=lambda made: made["vace_frames"][0][:, :16],
    ),
    "WanFunControlToVideo": Takes(("control_video",)),
    "Wan22FunControlToVideo": Takes(("control_video",), "ref_image"),
    "WanHuMoImageToVideo": Takes((), "ref_image", hears=True),
    "WanSoundImageToVideo": Takes(("control_video",), "ref_image", hears=True),
    "WanAnimateToVideo": Takes(
        ("pose_video", "face_video"), "reference_image", ahead=lambda made: made["concat_latent_image"]
    ),
    "WanSCAILToVideo": Takes(("pose_video", "pose_video_mask"), "reference_image"),
}


@dataclass(frozen=True)
class Made:
    """What a node returns: settings of a conditioning, and a latent (1, C, F, ...). The latent holds given
    values where its noise mask (1, 1, F, ...) is 0."""

    settings: Settings
    latent: Tensor | None = None
    noise_mask: Tensor | None = None
    ahead: Tensor | None = None
    """The latent of a reference that the model makes again in front of the clip (1, C, f, H, W)."""
    masked: bool = False
    """Whether it holds the mask."""

    def within(self, latent: Tensor) -> Tensor:
        """A latent with the given values put in."""
        if self.ahead is not None:
            latent = torch.cat([self.ahead, latent], 2)
        if self.latent is None or self.noise_mask is None:
            return latent
        return torch.where(self.noise_mask == 0, self.latent, latent)


@dataclass(frozen=True)
class Given:
    """How the host's `node` makes the given parts.

    It takes a VAE, pixels (F, H, W, 3), a mask (1, H, W), and what belongs to the clip.
    """

    node: str
    make: Callable[[Any, Tensor, Tensor | None, Beside], Made]
    masked: bool = False
    """Whether masks say what to paint, and not what to learn."""
    ends: str = ""
    """The frames that the given parts are made from, as in `ENDS`."""
    needed: bool = True
    """Whether the model makes videos only with given parts."""
    seen: bool = False
    """Whether a CLIP vision model also sees the given frames."""
    takes: Takes = Takes()


def given_of(model: Any, ends: str, see: See | None = None) -> Given | None:
    """How a model is given parts of its target; None if it is given nothing.

    If the model's node takes the output of a CLIP vision model, it also gets what `see` returns for the
    frames.
    """
    config = model.model_config.unet_config
    channels, own = config.get("in_channels") or 0, config.get("out_channels") or 0
    kind = type(model).__name__
    if "mask" in model.concat_keys or (kind == "Flux" and channels > 2 * own > 0):
        return Given("InpaintModelConditioning", _around, masked=True)
    node = _NODES.get(kind) or (_OF_MARKED.get(kind) if getattr(model, "image_to_video", False) else None)
    if kind == "WAN21":
        node = _OF_CHANNELS.get(config.get("in_dim") or 0, node)
    if kind == "HunyuanVideo15" and channels > model.latent_format.latent_channels:
        node = "HunyuanVideo15ImageToVideo"
    if ends == "none":
        if node not in _TAKES:
            return None
        found = node
    elif kind == "HunyuanVideo" and ends == REPLACED:
        found = "HunyuanImageToVideo"
    else:
        found = {"first": node, "first and last": _OF_LAST.get(node or "")}.get(ends)
    if node and not found:
        raise TrainError(
            "this model is given other frames",
            key="first_frames",
            got=ends,
            expected="first, first and last, or none" if node in _OF_LAST else "first or none",
        )
    if not found:
        return None
    return Given(
        found,
        lambda vae, pixels, mask, beside: _of_ends(found, ends, vae, pixels, mask, see, beside),
        ends=ends,
        needed=kind not in OF_BOTH,
        seen=see is not None and not _inputs_of(found).keys().isdisjoint(SEEN),
        takes=_TAKES.get(found, Takes()),
    )


def misses_frames(model: Any, ends: str) -> bool:
    """Whether the model should get frames, but `given_of` has no node for them.

    It should if it is an image-to-video model, or if `ends` asks for more than the first frame.
    """
    takes = getattr(model, "image_to_video", False) or type(model).__name__ in OF_PICTURES
    return given_of(model, ends) is None and ends != "none" and (takes or ends != ENDS[0])


def unmade(model: Any) -> tuple[str, str, bool] | None:
    """The entry of `UNMADE` for a model."""
    return next((UNMADE[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in UNMADE), None)


def check_made(model: Any, settings: Mapping[str, Any]) -> None:
    """Raise TrainError for a conditioning without a setting that the model cannot run without."""
    name, node, needed = unmade(model) or ("", "", False)
    if needed and settings.get(name) is None:
        raise TrainError(
            f"{type(model).__name__} cannot be trained with captions alone: it also takes `{name}`",
            key=name,
            hint=f"It is not made from a folder. ComfyUI's node {node} makes it: link the conditioning from "
            "there, with latents of VAE Encode, to `positive` and `latents` of the training",
        )


def _around(vae: Any, pixels: Tensor, mask: Tensor | None, beside: Beside) -> Made:
    hole = torch.ones(1, *pixels.shape[1:3]) if mask is None else mask
    made = nodes.InpaintModelConditioning().encode([_nothing()], [_nothing()], pixels, vae, hole, False)
    return Made(made[0][0][1])


def stored(settings: Settings) -> Settings:
    """Settings in which the output of a CLIP vision model is a table of the tensors that models use."""
    return {
        name: {key: vars(value)[key] for key in _TAKEN if key in vars(value)}
        if isinstance(value, Output)
        else value
        for name, value in settings.items()
    }


def restored(settings: Mapping[str, Any]) -> Settings:
    """The settings that `stored` was called with, with only those vision tensors that models use."""
    made = dict(settings)
    if SEEN[0] in made:
        made[SEEN[0]] = Output()
        vars(made[SEEN[0]]).update(settings[SEEN[0]])
    return made


def _node(name: str) -> Any:
    return own_node(name, "this ComfyUI cannot give the model a first frame")


def _inputs_of(name: str) -> dict[str, Any]:
    """The inputs of a node with their defaults."""
    return {one.id: getattr(one, "default", None) for one in _node(name).define_schema().inputs}


def _of_ends(
    name: str,
    ends: str,
    vae: Any,
    pixels: Tensor,
    mask: Tensor | None,
    see: See | None,
    beside: Beside,
) -> Made:
    known, takes = _inputs_of(name), _TAKES.get(name, Takes())
    length, height, width = pixels.shape[:3]
    inputs: dict[str, Any] = {name: value for name, value in known.items() if value is not None}
    inputs |= {"positive": [_nothing()], "negative": [_nothing()], "vae": vae}
    inputs |= {"width": width, "height": height, "length": length, "batch_size": 1, "strength": 1.0}
    if ends != "none":
        inputs |= {"start_image": pixels[:1], "image": pixels[:1]}
    inputs |= dict(zip(takes.controls, beside.controls, strict=False))
    if beside.reference is not None:
        inputs[takes.reference] = beside.reference
    if beside.heard is not None:
        inputs[_HEARD] = beside.heard
    masked = mask is not None and bool(takes.masks and beside.controls)
    if mask is not None and masked:
        inputs[takes.masks] = mask.expand(length, -1, -1)
    inputs["guidance_type"] = "v2 (replace)" if ends == REPLACED else "v1 (concat)"
    if ends == "first and last":
        inputs["end_image"] = pixels[-1:]
    looked_at = beside.reference if takes.reference else inputs.get("start_image")
    if see is not None and looked_at is not None:
        first, at_start, at_end = SEEN
        inputs |= {name: see(looked_at) for name in (first, at_start) if name in known}
        if at_end in known and ends == "first and last":
            inputs[at_end] = see(pixels[-1:])
    made = _node(name).execute(**{name: value for name, value in inputs.items() if name in known}).args
    settings = made[0][0][1] if isinstance(made[0], list) else {}
    latent = next((one for one in made if isinstance(one, dict) and NOISE_MASK in one), None)
    if latent:
        return Made(settings, latent["samples"], latent[NOISE_MASK])
    # The fourth output of these nodes is how many frames of the latent are the reference.
    ahead = takes.ahead(settings)[:, :, : made[3]] if takes.ahead and made[3] else None
    return Made(settings, ahead=ahead, masked=masked)


def _nothing() -> list[Any]:
    return [None, {}]
