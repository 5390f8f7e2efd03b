"""Krea 2."""

from .family import Family, Network
from .shared import beside_or_concatenated
from .times import Times

FAMILY = Family(
    hosts=("Krea2",),
    name="Krea 2",
    source="kohya-ss/musubi-tuner",
    times=Times("logit-normal", shift=2.5),
    rank=32,
    references=beside_or_concatenated,
    networks={"SingleStreamDiT": Network()},
)
