"""MiniMax-H3, which makes clips with sound."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..sampling import literal
from .family import Family, Sound
from .node import BOTH, FIRST, NONE, Beside, Node, Takes, given_node
from .shared import of_sound

_NODE = "MiniMaxH3ImageToVideo"


def _encoded(
    ends: str, clip: Any, vae: Any, text: str, shown: Tensor, length: int, beside: Beside
) -> list[Any]:
    """A text encoded with references, or else with the ends of a clip."""
    height, width = shown.shape[1:3]
    inputs = {"clip": clip, "vae": vae, "prompt": literal(text)}
    inputs |= {"width": width, "height": height, "length": length}
    if beside.controls or beside.references:
        groups = {"ref_image": beside.references, "ref_video": beside.controls}
        inputs |= {
            f"{name}s": {f"{name}_{number}": value for number, value in enumerate(values)}
            for name, values in groups.items()
        }
        return given_node("MiniMaxH3ReferenceToVideo").execute(**inputs, audio_vae=None).args[0]
    inputs |= {"first_frame": shown[:1]}
    inputs |= {"last_frame": shown[-1:]} if ends == BOTH else {}
    return given_node(_NODE).execute(**inputs).args[0]


def _cut(vae: Any, latent: Tensor, frames: int, frame_rate: float) -> Tensor:
    _, empty = of_sound("EmptyMiniMaxH3LatentAV", width=32, height=32, length=frames)["samples"].unbind()
    return latent[..., : empty.shape[-1]]


FAMILY = Family(
    hosts=("MiniMaxH3",),
    alone=True,
    frame_rate=24,
    clip=(17, 5),
    channels=24,
    given=Node(
        dict.fromkeys((FIRST, BOTH, NONE), _NODE),
        Takes(("ref_videos",) * 3, "ref_images", most=9),
        needed=False,
        encode=_encoded,
    ),
    sound=Sound("MiniMaxH3AudioVAE", _cut, needed=True),
)
