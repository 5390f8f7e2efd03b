"""LTX-Video, and LTX-2, which makes sound too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..sampling import NOISE_MASK
from .family import Family, Network, Sound
from .node import BOTH, FIRST, NONE, Beside, Made, Node, See, Takes, given_node, nothing
from .shared import of_sound
from .times import Times

_FIRST, _GUIDE = "LTXVImgToVideo", "LTXVAddGuide"


def _guided(
    name: str,
    takes: Takes,
    ends: str,
    see: See | None,
    vae: Any,
    pixels: Tensor,
    mask: Tensor | None,
    beside: Beside,
) -> Made:
    """The first frame in its place, and guides behind the clip.

    These are the last frame, and clips and pictures that begin where the clip begins.
    """
    length, height, width = pixels.shape[:3]
    size = {"width": width, "height": height, "length": length, "batch_size": 1}
    positive, negative = [nothing()], [nothing()]
    if ends == NONE:
        (latent,) = given_node("EmptyLTXVLatentVideo").execute(**size).args
    else:
        inputs = {"positive": positive, "negative": negative, "vae": vae, "strength": 1.0}
        *_, latent = given_node(_FIRST).execute(**inputs, **size, image=pixels[:1]).args
    guides = [(-1, pixels[-1:])] if ends == BOTH else []
    guides += [(0, guide) for guide in (*beside.controls, *beside.references)]
    for frame, image in guides:
        inputs = {"vae": vae, "latent": latent, "image": image, "frame_idx": frame, "strength": 1.0}
        add = given_node(_GUIDE).execute
        positive, negative, latent = add(positive=positive, negative=negative, **inputs).args
    return Made(positive[0][1], latent["samples"], latent[NOISE_MASK])


def _cut(vae: Any, latent: Tensor, frames: int, frame_rate: float) -> Tensor:
    size = {"frames_number": frames, "frame_rate": frame_rate, "batch_size": 1}
    return latent[:, :, : of_sound("LTXVEmptyLatentAudio", **size, audio_vae=vae)["samples"].shape[2]]


# The node for guides adds each clip and picture.
_NODE = Node(
    {FIRST: _FIRST, BOTH: _FIRST, NONE: _GUIDE},
    Takes(("image", "image"), "image", most=16),
    needed=False,
    make=_guided,
)

FAMILY = Family(
    hosts=("LTXV",),
    name="LTX-Video",
    source="Lightricks/LTX-Video-Trainer; the times: ai-toolkit",
    # Nearly the times that ai-toolkit calls weighted.
    times=Times(shift=1.66),
    rank=32,
    lr=2e-4,
    # With these all linear layers are trained.
    include=("*_proj*", "adaln_single*", "proj_out"),
    resolution=512,
    frame_rate=25,
    latents={"LTXV": 8},
    given=_NODE,
    networks=dict.fromkeys(("LTXVModel", "LTXAVModel"), Network(attentions="CrossAttention")),
    variants={
        "LTXAV": {
            "name": "LTX-2",
            "source": "diffusion-pipe; the times: ai-toolkit",
            "lr": 1e-4,
            "include": (),
            "sound": Sound("AudioVAE", _cut),
        }
    },
)
