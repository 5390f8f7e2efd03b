"""How the host's nodes give a model parts of its target: the ends of a clip, clips that control it, and
references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.utils import common_upscale
from torch import Tensor

from ..sampling import NOISE_MASK, own_node

Settings = dict[str, Any]
FIRST, BOTH, REPLACED, NONE = ENDS = ("first", "first and last", "first, v2 (replace)", "none")
"""Which frames of a clip an image-to-video model is given. The third is for HunyuanVideo's second
image-to-video model, whose weights have the shapes of the text-to-video model's."""
SEEN = ("clip_vision_output", "clip_vision_start_image", "clip_vision_end_image")
"""The inputs of these nodes that take the output of a CLIP vision model. The third is for the last frame."""
SEEN_REFERENCE = "clip_vision_output_ref"
"""The input for a reference that only a CLIP vision model sees."""
_HEARD = "audio_encoder_output"
See = Callable[[Tensor], Any]
"""Gives the output of a CLIP vision model for a picture (1, H, W, 3)."""


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
    hears: Callable[[Any], tuple[int, int]] | None = None
    """The layers of the audio encoder whose output for the clip's sound a network hears, and their width."""
    music: Callable[[Callable[[int], Tensor], int], Any] | None = None
    """Makes what the model hears by the host's own node, without an audio encoder. It takes what gives the
    waveform (1, channels, n) for a number of samples per second, and the number of frames."""
    instead: str = ""
    """The user's choice in `WAYS` for a model that has the same layers and takes more references."""
    ahead: Callable[[Settings], Tensor] | None = None
    """Where the reference is found that the model makes again in front of the clip."""

    @property
    def only_seen(self) -> bool:
        """Whether only a CLIP vision model sees the reference, and the first frame too."""
        return self.references == SEEN_REFERENCE


NOTHING = Takes()
"""For a node that takes the ends of a clip alone."""


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
class Node:
    """What gives a model parts of its target."""

    frames: Mapping[str, str]
    """The node for each choice of frames, see `ENDS`; for "none" if it also works without frames."""
    takes: Takes = NOTHING
    needed: bool = True
    """Whether the model makes videos only with given parts."""
    make: Callable[[str, Takes, str, See | None, Any, Tensor, Tensor | None, Beside], Made] | None = None
    """Used in place of `of_node`, with the same arguments."""
    encode: Callable[[str, Any, Any, str, Tensor, int, Beside], list[Any]] | None = None
    """Used in place of `make`, by nodes that encode a text too. It takes the choice of frames, then what
    `Given.encode` takes."""


def batch(method: str) -> Callable[[Sequence[Tensor], tuple[int, int]], Tensor]:
    """Joins pictures in the size of the clip. The host's nodes scale each by this method, and cut it."""

    def joined(images: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        scaled = [common_upscale(picture.movedim(-1, 1), *size, method, "center") for picture in images]
        return torch.cat(scaled).movedim(1, -1)

    return joined


def given_node(name: str) -> Any:
    return own_node(name, "give the model a first frame")


def inputs_of(name: str) -> dict[str, Any]:
    """The inputs of a node with their defaults."""
    return {each.id: getattr(each, "default", None) for each in given_node(name).define_schema().inputs}


def of_node(
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
    known = inputs_of(name)
    length, height, width = pixels.shape[:3]
    inputs: dict[str, Any] = {name: value for name, value in known.items() if value is not None}
    inputs |= {"positive": [nothing()], "negative": [nothing()], "vae": vae}
    inputs |= {"width": width, "height": height, "length": length, "batch_size": 1, "strength": 1.0}
    if ends != NONE:
        inputs |= {"start_image": pixels[:1], "image": pixels[:1]}
    inputs |= dict(zip(takes.controls, beside.controls, strict=False))
    reference = beside.references[0] if beside.references else None
    if reference is not None and takes.references in known and not takes.only_seen:
        inputs[takes.references] = takes.joined(beside.references, (width, height))
        if takes.reference_masks and any(own is not None for own in beside.masks):
            # White is the background.
            colours = [own if own is not None else torch.ones(1, 1, 1, 3) for own in beside.masks]
            inputs[takes.reference_masks] = batch("nearest-exact")(colours, (width, height))
    if beside.heard is not None:
        inputs[_HEARD] = beside.heard
    masked = mask is not None and bool(takes.masks) and takes.kept in inputs
    if mask is not None and masked:
        inputs[takes.masks] = mask.expand(length, -1, -1)
    inputs["guidance_type"] = "v2 (replace)" if ends == REPLACED else "v1 (concat)"
    if ends == BOTH:
        inputs["end_image"] = pixels[-1:]
    first = inputs.get("start_image")
    looked_at = first if takes.only_seen or not takes.references else reference
    if see is not None and looked_at is not None:
        *of_first, of_last = SEEN
        inputs |= {name: see(looked_at) for name in of_first if name in known}
        if of_last in known and ends == BOTH:
            inputs[of_last] = see(pixels[-1:])
        if takes.only_seen and reference is not None:
            inputs[SEEN_REFERENCE] = see(reference)
    outputs = (
        given_node(name).execute(**{name: value for name, value in inputs.items() if name in known}).args
    )
    settings = outputs[0][0][1] if isinstance(outputs[0], list) else {}
    latent = next((output for output in outputs if isinstance(output, dict) and NOISE_MASK in output), None)
    if latent:
        return Made(settings, latent["samples"], latent[NOISE_MASK])
    # The fourth output of these nodes is how many frames of the latent are the reference.
    ahead = takes.ahead(settings)[:, :, : outputs[3]] if takes.ahead and outputs[3] else None
    return Made(settings, ahead=ahead, masked=masked)


def nothing() -> list[Any]:
    return [None, {}]
