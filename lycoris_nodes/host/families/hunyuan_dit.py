"""HunyuanDiT."""

from .family import Family, Network
from .times import Times

FAMILY = Family(
    hosts=("HunyuanDiT",),
    name="HunyuanDiT",
    times=Times(),
    told_size=True,
    networks={"HunYuanDiT": Network()},
)
