"""FLUX.2."""

from .family import Family
from .shared import OF_FLUX, beside_or_concatenated
from .times import Times

FAMILY = Family(
    hosts=("Flux2",),
    name="Flux 2",
    source="ai-toolkit; the shift: kohya-ss/musubi-tuner",
    times=Times(shift=OF_FLUX),
    guidance=1.0,
    rank=32,
    include=("final_layer.linear",),
    references=beside_or_concatenated,
)
