"""Stable Diffusion 1 and 2."""

from .family import Family, Network
from .times import Times

FAMILY = Family(
    hosts=("BaseModel",),
    name="Stable Diffusion",
    source="kohya-ss/sd-scripts, OneTrainer",
    times=Times(),
    resolution=512,
    networks={"UNetModel": Network()},
)
