"""What a model is given of the very picture or clip that it is to make: its first frame, or what is around a
hole. The host's own nodes make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nodes
import torch
from torch import Tensor

from ...lycoris_ops import TrainError

Settings = dict[str, Any]
ENDS = ("first", "first and last", "none")
"""Which frames of a clip a model of videos from pictures is given."""
OF_PICTURES = ("HunyuanVideoSkyreelsI2V", "SVD_img2vid")
"""Models of videos from pictures that the host does not mark as such."""


@dataclass(frozen=True)
class Given:
    """What a `node` of the host makes of pixels (F, H, W, 3) and the mask (1, H, W) of what to paint."""

    node: str
    make: Callable[[Any, Tensor, Tensor | None], Settings]
    masked: bool = False
    """Whether masks say what to paint, and not what to learn."""


def given_of(model: Any, ends: str = "first") -> Given | None:
    """What a model is given; None for one that is given nothing."""
    config = model.model_config.unet_config
    channels, own = config.get("in_channels") or 0, config.get("out_channels") or 0
    kind = type(model).__name__
    if "mask" in model.concat_keys or (kind == "Flux" and channels > 2 * own > 0):
        return Given("InpaintModelConditioning", _around, masked=True)
    if ends == "none":
        return None
    named = {"HunyuanVideoI2V": "HunyuanImageToVideo", "Kandinsky5": "Kandinsky5ImageToVideo"}
    if kind == "WAN21" and model.image_to_video:
        named[kind] = "WanImageToVideo" if ends == "first" else "WanFirstLastFrameToVideo"
    if kind == "HunyuanVideo15" and channels > model.latent_format.latent_channels:
        named[kind] = "HunyuanVideo15ImageToVideo"
    if kind not in named:
        return None
    node = named[kind]
    if ends != "first" and "Last" not in node:
        raise TrainError(
            "this model is given the first frame alone", key="first_frames", got=ends, expected="first"
        )
    return Given(node, lambda vae, pixels, mask: _of_ends(node, vae, pixels))


def misses_frames(model: Any, ends: str) -> bool:
    """Whether a model that `given_of` gives nothing should be given frames of clips: it makes videos of
    pictures, or the user has asked for more than the usual."""
    takes = getattr(model, "image_to_video", False) or type(model).__name__ in OF_PICTURES
    return given_of(model, ends) is None and ends != "none" and (takes or ends != ENDS[0])


def _around(vae: Any, pixels: Tensor, mask: Tensor | None) -> Settings:
    hole = torch.ones(1, *pixels.shape[1:3]) if mask is None else mask
    made = nodes.InpaintModelConditioning().encode([_nothing()], [_nothing()], pixels, vae, hole, False)
    return made[0][0][1]


def _of_ends(name: str, vae: Any, pixels: Tensor) -> Settings:
    node: Any = nodes.NODE_CLASS_MAPPINGS.get(name)
    if node is None:
        raise TrainError(
            "this ComfyUI cannot give the model a first frame",
            got=f"no node {name}",
            hint="Update ComfyUI",
        )
    length, height, width = pixels.shape[:3]
    given: dict[str, Any] = {"positive": [_nothing()], "vae": vae, "width": width, "height": height}
    given |= {"length": length, "batch_size": 1, "start_image": pixels[:1]}
    if name == "HunyuanImageToVideo":
        given["guidance_type"] = "v1 (concat)"
    else:
        given["negative"] = [_nothing()]
    if "Last" in name:
        given["end_image"] = pixels[-1:]
    return node.execute(**given).args[0][0][1]


def _nothing() -> list[Any]:
    return [None, {}]
