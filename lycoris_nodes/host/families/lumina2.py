"""Lumina 2."""

from .family import Family, Network
from .shared import pictures_of_the_text
from .times import Times

FAMILY = Family(
    hosts=("Lumina2",),
    name="Lumina 2",
    source="kohya-ss/sd-scripts",
    times=Times("logit-normal", shift=6.0),
    rank=8,
    references=pictures_of_the_text,
    networks={"NextDiT": Network()},
)
