"""SDXL."""

from .family import Family
from .shared import CONCATENATED_ALONE
from .times import Times

FAMILY = Family(
    hosts=("SDXL",),
    name="SDXL",
    source="kohya-ss/sd-scripts",
    times=Times(),
    rank=32,
    told_size=True,
    variants={
        "SDXLRefiner": {"name": "SDXL refiner"},
        "SDXL_instructpix2pix": {"references": CONCATENATED_ALONE},
    },
)
