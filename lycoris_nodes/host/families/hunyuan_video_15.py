"""HunyuanVideo 1.5."""

from __future__ import annotations

from typing import Any

from .family import Family
from .node import FIRST, Node
from .shared import channels_of
from .times import Times

_NODE = Node({FIRST: "HunyuanVideo15ImageToVideo"})


def _given(model: Any, way: str) -> Node | None:
    return _NODE if channels_of(model)[0] > model.latent_format.latent_channels else None


FAMILY = Family(
    hosts=("HunyuanVideo15",),
    name="HunyuanVideo 1.5",
    source="kohya-ss/musubi-tuner",
    times=Times("logit-normal", shift=2.0),
    rank=32,
    lr=2e-4,
    resolution=512,
    frame_rate=24,
    latents={"HunyuanVideo15": 4},
    given=_given,
)
