"""HunyuanImage 2.1."""

from .family import Family
from .times import Times

FAMILY = Family(
    hosts=("HunyuanImage21",),
    name="HunyuanImage 2.1",
    source="kohya-ss/sd-scripts",
    times=Times(shift=5.0),
)
