"""HunyuanVideo, and models whose configurations derive from it."""

from .family import Family, Network, Unmade
from .node import FIRST, REPLACED, Node
from .times import Times

_NODE = "HunyuanImageToVideo"

FAMILY = Family(
    hosts=("HunyuanVideo",),
    name="HunyuanVideo",
    source="kohya-ss/musubi-tuner, diffusion-pipe",
    times=Times("logit-normal", shift=7.0),
    guidance=1.0,
    rank=32,
    lr=2e-4,
    include=("final_layer.linear",),
    resolution=512,
    frame_rate=24,
    latents={"HunyuanVideo": 4},
    given=Node({REPLACED: _NODE}),
    networks={"HunyuanVideo": Network(norms="HunyuanVideo")},
    variants={
        "HunyuanVideoI2V": {"given": Node({FIRST: _NODE})},
        # The host does not mark it as image-to-video.
        "HunyuanVideoSkyreelsI2V": {"given": None, "animates": lambda model: True},
        "HunyuanVideo15_SR_Distilled": {
            "given": None,
            "unmade": Unmade("concat_latent_image", "HunyuanVideo15SuperResolution"),
        },
        "HunyuanImage21Refiner": {
            "given": None,
            "frame_rate": None,
            "unmade": Unmade("concat_latent_image", "HunyuanRefinerLatent"),
        },
    },
)
