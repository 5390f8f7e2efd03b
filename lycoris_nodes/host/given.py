"""What a model is given beside a text: the ends of a clip, what surrounds a hole in a picture, clips that
control it, references, and its sound.

The host's own nodes make it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import nodes
import torch
from comfy.clip_vision import Output
from comfy.utils import common_upscale
from torch import Tensor

from ...lycoris_ops import TrainError
from .sampling import literal, own_node
from .training import NOISE_MASK

Settings = dict[str, Any]
REPLACED = "first, v2 (replace)"
ENDS = ("first", "first and last", REPLACED, "none")
"""Which frames of a clip an image-to-video model is given. The third is for HunyuanVideo's second
image-to-video model, whose weights have the shapes of the text-to-video model's."""
OF_PICTURES = ("HunyuanVideoSkyreelsI2V", "SVD_img2vid")
"""Image-to-video models that the host does not mark as such."""
OF_BOTH = ("WAN22", "LTXV", "LTXAV", "MiniMaxH3")
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
    "MiniMaxH3": "MiniMaxH3ImageToVideo",
    **dict.fromkeys(("WAN21_SCAIL", "WAN21_SCAIL2"), "WanSCAILToVideo"),
}
_OF_MARKED: Mapping[str, str] = {
    "WAN21": "WanImageToVideo",
    "CosmosVideo": "CosmosImageToVideoLatent",
    "CosmosPredict2": "CosmosPredict2ImageToVideoLatent",
}
"""The nodes of models that the host marks as image-to-video."""
_ENCODED, _ENCODED_WITH = "MiniMaxH3ImageToVideo", "MiniMaxH3ReferenceToVideo"
"""Nodes that encode the text with the ends of a clip, and with references in their place."""
_GUIDED, _GUIDE = "LTXVImgToVideo", "LTXVAddGuide"
BERNINI = "Bernini"
"""The user's choice of the references of Bernini."""
_OF_REFERENCES: Mapping[str, str] = {"auto": "WanPhantomSubjectToVideo", BERNINI: "BerniniConditioning"}
"""The nodes of Wan models for text-to-video that take references, by the user's choice: all have the same
layers."""
_OF_CHANNELS: Mapping[int, str] = {48: "WanFunControlToVideo", 52: "Wan22FunControlToVideo"}
"""The nodes of Wan models with this many channels."""
SEEN = ("clip_vision_output", "clip_vision_start_image", "clip_vision_end_image")
"""The inputs of these nodes that take the output of a CLIP vision model. The third is for the last frame."""
_SEEN_REFERENCE = "clip_vision_output_ref"
"""The input for a reference that only a CLIP vision model sees."""
_TAKEN = ("penultimate_hidden_states", "last_hidden_state", "image_sizes")
"""The outputs of a CLIP vision model that video models use. The states of all layers are far larger."""
See = Callable[[Tensor], Any]
"""Gives the output of a CLIP vision model for a picture (1, H, W, 3)."""
_OF_LAST: Mapping[str, str] = {
    "WanImageToVideo": "WanFirstLastFrameToVideo",
    _GUIDED: _GUIDED,
    _ENCODED: _ENCODED,
    **{name: name for name in _OF_MARKED.values() if name.startswith("Cosmos")},
}
"""The nodes that take a last frame too."""


@dataclass(frozen=True)
class Beside:
    """What belongs to a clip.

    Others that control it (F, H, W, 3), references (1, H, W, 3), the mask of each in colours, if it has one,
    and what an audio encoder gives for its sound.
    """

    controls: Sequence[Tensor] = ()
    references: Sequence[Tensor] = ()
    masks: Sequence[Tensor | None] = ()
    heard: Any = None


@dataclass(frozen=True)
class Takes:
    """The inputs of a node for what belongs to a clip."""

    controls: tuple[str, ...] = ()
    references: str = ""
    most: int = 1
    """How many references there may be."""
    joined: Callable[[Sequence[Tensor], tuple[int, int]], Any] = lambda images, size: images[0]
    """Makes the input of references (1, H, W, 3), for a clip of this width and height."""
    reference_masks: str = ""
    """For the masks of the references, in colours."""
    masks: str = ""
    """For the mask of the clip: white is to be made, and black is kept from the control clip `kept`."""
    kept: str = ""
    hears: bool = False
    """Whether the model hears what an audio encoder makes of the clip's sound."""
    music: bool = False
    """Whether the host's own node makes what the model hears, without an audio encoder."""
    ahead: Callable[[Settings], Tensor] | None = None
    """Where the reference is found that the model makes again in front of the clip."""

    @property
    def only_seen(self) -> bool:
        """Whether only a CLIP vision model sees the reference, and the first frame too."""
        return self.references == _SEEN_REFERENCE


def _batch(method: str) -> Callable[[Sequence[Tensor], tuple[int, int]], Tensor]:
    """Joins pictures in the size of the clip. The host's nodes scale each by this method, and cut it."""

    def joined(images: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        scaled = [common_upscale(picture.movedim(-1, 1), *size, method, "center") for picture in images]
        return torch.cat(scaled).movedim(1, -1)

    return joined


def _named(images: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    return {f"reference_image_{number}": image for number, image in enumerate(images)}


_HEARD = "audio_encoder_output"
_TAKES: Mapping[str, Takes] = {
    "WanVaceToVideo": Takes(
        ("control_video",),
        "reference_image",
        masks="control_masks",
        kept="control_video",
        ahead=lambda settings: settings["vace_frames"][0][:, :16],
    ),
    "WanFunControlToVideo": Takes(("control_video",)),
    "Wan22FunControlToVideo": Takes(("control_video",), "ref_image"),
    "WanHuMoImageToVideo": Takes((), "ref_image", hears=True),
    "WanSoundImageToVideo": Takes(("control_video",), "ref_image", hears=True),
    "WanAnimateToVideo": Takes(
        ("pose_video", "face_video", "background_video"),
        "reference_image",
        masks="character_mask",
        kept="background_video",
        ahead=lambda settings: settings["concat_latent_image"],
    ),
    "WanSCAILToVideo": Takes(
        ("pose_video", "pose_video_mask"),
        "reference_image",
        most=16,
        joined=_batch("bicubic"),
        reference_masks="reference_image_mask",
    ),
    # It takes neither further references nor masks.
    "WAN21_SCAIL": Takes(("pose_video",), "reference_image"),
    "WanDancerVideo": Takes((), _SEEN_REFERENCE, music=True),
    _OF_REFERENCES["auto"]: Takes((), "images", most=4, joined=_batch("bilinear")),
    _OF_REFERENCES[BERNINI]: Takes(
        ("source_video", "reference_video"), "reference_images", most=8, joined=_named
    ),
    # `_ENCODED_WITH` takes them.
    _ENCODED: Takes(("ref_videos",) * 3, "ref_images", most=9),
    # `_GUIDE` adds each of them.
    _GUIDED: Takes(("image", "image"), "image", most=16),
}
"""By the node, or by the host's class for a model that takes less than others of its node."""


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
        # Guides of LTX-Video are behind the clip.
        latent = torch.cat([latent, self.latent[:, :, latent.shape[2] :]], 2)
        return torch.where(self.noise_mask == 0, self.latent, latent)


@dataclass(frozen=True)
class Given:
    """How the host's `node` makes the given parts: by `make`, or together with a text by `encode`."""

    node: str
    make: Callable[[Any, Tensor, Tensor | None, Beside], Made] | None
    """It takes a VAE, pixels (F, H, W, 3), a mask (1, H, W), and what belongs to the clip."""
    masked: bool = False
    """Whether masks say what to paint, and not what to learn."""
    ends: str = ""
    """The frames that the given parts are made from, as in `ENDS`."""
    needed: bool = True
    """Whether the model makes videos only with given parts."""
    seen: bool = False
    """Whether a CLIP vision model also sees the given frames."""
    takes: Takes = Takes()
    encode: Callable[[Any, Any, str, Tensor, int, Beside], list[Any]] | None = None
    """It takes a text encoder, a VAE, the text, the first and the last frame (2, H, W, 3), the number of
    frames, and what belongs to the clip."""

    @property
    def may_be_bernini(self) -> bool:
        """Whether the model may be Bernini, and the user has not chosen it."""
        return self.node == _OF_REFERENCES["auto"]

    @property
    def only_beside(self) -> bool:
        """Whether a clip without anything beside it is given nothing."""
        return not self.needed and self.ends == "none"

    @property
    def unseen(self) -> bool:
        """Whether a CLIP vision model would see the first frame, and none is given."""
        return self.ends == "none" and (self.takes.only_seen or not self.takes.references)


def given_of(model: Any, ends: str, see: See | None = None, references: str = "auto") -> Given | None:
    """How a model is given parts of its target; None if it is given nothing.

    If the model's node takes the output of a CLIP vision model, it also gets what `see` returns for the
    frames. `references` is the user's choice, as in `WAYS`.
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
    of_both = kind in OF_BOTH
    if ends == "none":
        name = node if node in _TAKES else None
    elif kind == "HunyuanVideo" and ends == REPLACED:
        name = "HunyuanImageToVideo"
    else:
        name = {"first": node, "first and last": _OF_LAST.get(node or "")}.get(ends)
        if node and not name:
            raise TrainError(
                "this model is given other frames",
                key="first_frames",
                got=ends,
                expected="first, first and last, or none" if node in _OF_LAST else "first or none",
            )
    if kind == "WAN21" and node is None:
        name, ends, of_both = _OF_REFERENCES.get(references, _OF_REFERENCES["auto"]), "none", True
    if not name:
        return None
    takes = _TAKES.get(kind) or _TAKES.get(name) or Takes()
    how = Given(name, partial(_of_node, name, takes, ends, see), ends=ends, needed=not of_both, takes=takes)
    if name == _ENCODED:
        return replace(how, make=None, encode=partial(_encoded, ends))
    if name == _GUIDED:
        return replace(how, node=_GUIDE if ends == "none" else name, make=partial(_of_guides, ends))
    seen = see is not None and not how.unseen and not _inputs_of(name).keys().isdisjoint(SEEN)
    return replace(how, seen=seen)


def misses_frames(model: Any, ends: str) -> bool:
    """Whether the model should get frames, but `given_of` has no node for them.

    It should if it is an image-to-video model, or if `ends` asks for more than the first frame.
    """
    takes = getattr(model, "image_to_video", False) or type(model).__name__ in OF_PICTURES
    how = given_of(model, ends)
    return (how is None or how.only_beside) and ends != "none" and (takes or ends != ENDS[0])


def _around(vae: Any, pixels: Tensor, mask: Tensor | None, beside: Beside) -> Made:
    hole = torch.ones(1, *pixels.shape[1:3]) if mask is None else mask
    conditioning = nodes.InpaintModelConditioning().encode(
        [_nothing()], [_nothing()], pixels, vae, hole, False
    )
    return Made(conditioning[0][0][1])


def stored(settings: Settings) -> Settings:
    """Settings in which the output of a CLIP vision model is a table of the tensors that models use."""
    return {name: _in_tables(value) for name, value in settings.items()}


def _in_tables(value: Any) -> Any:
    if isinstance(value, list):
        values: list[Any] = value
        return [_in_tables(each) for each in values]
    return {key: vars(value)[key] for key in _TAKEN if key in vars(value)} if type(value) is Output else value


def restored(settings: Mapping[str, Any]) -> Settings:
    """The settings that `stored` was called with, with only those vision tensors that models use."""
    return {
        name: _of_tables(value) if name.startswith(SEEN[0]) else value for name, value in settings.items()
    }


def _of_tables(value: Any) -> Any:
    """Outputs of CLIP vision models from their tables."""
    if value is None:
        return None
    if isinstance(value, list):
        values: list[Any] = value
        return [_of_tables(each) for each in values]
    output = Output()
    vars(output).update(value)
    return output


def _node(name: str) -> Any:
    return own_node(name, "this ComfyUI cannot give the model a first frame")


def _inputs_of(name: str) -> dict[str, Any]:
    """The inputs of a node with their defaults."""
    return {each.id: getattr(each, "default", None) for each in _node(name).define_schema().inputs}


def _of_node(
    name: str,
    takes: Takes,
    ends: str,
    see: See | None,
    vae: Any,
    pixels: Tensor,
    mask: Tensor | None,
    beside: Beside,
) -> Made:
    """What a node makes of the ends of a clip and of what is beside it."""
    known = _inputs_of(name)
    length, height, width = pixels.shape[:3]
    inputs: dict[str, Any] = {name: value for name, value in known.items() if value is not None}
    inputs |= {"positive": [_nothing()], "negative": [_nothing()], "vae": vae}
    inputs |= {"width": width, "height": height, "length": length, "batch_size": 1, "strength": 1.0}
    if ends != "none":
        inputs |= {"start_image": pixels[:1], "image": pixels[:1]}
    inputs |= dict(zip(takes.controls, beside.controls, strict=False))
    reference = beside.references[0] if beside.references else None
    if reference is not None and takes.references in known and not takes.only_seen:
        inputs[takes.references] = takes.joined(beside.references, (width, height))
        if takes.reference_masks and any(own is not None for own in beside.masks):
            # White is the background.
            colours = [own if own is not None else torch.ones(1, 1, 1, 3) for own in beside.masks]
            inputs[takes.reference_masks] = _batch("nearest-exact")(colours, (width, height))
    if beside.heard is not None:
        inputs[_HEARD] = beside.heard
    masked = mask is not None and bool(takes.masks) and takes.kept in inputs
    if mask is not None and masked:
        inputs[takes.masks] = mask.expand(length, -1, -1)
    inputs["guidance_type"] = "v2 (replace)" if ends == REPLACED else "v1 (concat)"
    if ends == "first and last":
        inputs["end_image"] = pixels[-1:]
    first = inputs.get("start_image")
    looked_at = first if takes.only_seen or not takes.references else reference
    if see is not None and looked_at is not None:
        *of_first, of_last = SEEN
        inputs |= {name: see(looked_at) for name in of_first if name in known}
        if of_last in known and ends == "first and last":
            inputs[of_last] = see(pixels[-1:])
        if takes.only_seen and reference is not None:
            inputs[_SEEN_REFERENCE] = see(reference)
    outputs = _node(name).execute(**{name: value for name, value in inputs.items() if name in known}).args
    settings = outputs[0][0][1] if isinstance(outputs[0], list) else {}
    latent = next((output for output in outputs if isinstance(output, dict) and NOISE_MASK in output), None)
    if latent:
        return Made(settings, latent["samples"], latent[NOISE_MASK])
    # The fourth output of these nodes is how many frames of the latent are the reference.
    ahead = takes.ahead(settings)[:, :, : outputs[3]] if takes.ahead and outputs[3] else None
    return Made(settings, ahead=ahead, masked=masked)


def _of_guides(ends: str, vae: Any, pixels: Tensor, mask: Tensor | None, beside: Beside) -> Made:
    """What LTX-Video is given: the first frame in its place, and guides behind the clip.

    These are the last frame, and clips and pictures that begin where the clip begins.
    """
    length, height, width = pixels.shape[:3]
    size = {"width": width, "height": height, "length": length, "batch_size": 1}
    positive, negative = [_nothing()], [_nothing()]
    if ends == "none":
        (latent,) = _node("EmptyLTXVLatentVideo").execute(**size).args
    else:
        inputs = {"positive": positive, "negative": negative, "vae": vae, "strength": 1.0}
        *_, latent = _node(_GUIDED).execute(**inputs, **size, image=pixels[:1]).args
    guides = [(-1, pixels[-1:])] if ends == "first and last" else []
    guides += [(0, guide) for guide in (*beside.controls, *beside.references)]
    for frame, image in guides:
        inputs = {"vae": vae, "latent": latent, "image": image, "frame_idx": frame, "strength": 1.0}
        add = _node(_GUIDE).execute
        positive, negative, latent = add(positive=positive, negative=negative, **inputs).args
    return Made(positive[0][1], latent["samples"], latent[NOISE_MASK])


def _encoded(
    ends: str, clip: Any, vae: Any, text: str, shown: Tensor, length: int, beside: Beside
) -> list[Any]:
    height, width = shown.shape[1:3]
    inputs = {"clip": clip, "vae": vae, "prompt": literal(text)}
    inputs |= {"width": width, "height": height, "length": length}
    if beside.controls or beside.references:
        groups = {"ref_image": beside.references, "ref_video": beside.controls}
        inputs |= {
            f"{name}s": {f"{name}_{number}": value for number, value in enumerate(values)}
            for name, values in groups.items()
        }
        return _node(_ENCODED_WITH).execute(**inputs, audio_vae=None).args[0]
    inputs |= {"first_frame": shown[:1]}
    inputs |= {"last_frame": shown[-1:]} if ends == "first and last" else {}
    return _node(_ENCODED).execute(**inputs).args[0]


def _nothing() -> list[Any]:
    return [None, {}]
