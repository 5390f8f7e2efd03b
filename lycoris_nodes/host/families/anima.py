"""Anima."""

from .family import Family, Network

FAMILY = Family(
    hosts=("Anima",),
    name="Anima",
    source="kohya-ss/sd-scripts",
    rank=8,
    networks={"Anima": Network(fused=True)},
)
