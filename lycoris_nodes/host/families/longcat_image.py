"""LongCat-Image."""

from .family import Family
from .shared import OF_FLUX, beside_or_concatenated
from .times import Times

FAMILY = Family(
    hosts=("LongCatImage",),
    name="LongCat-Image",
    source="as Flux",
    times=Times("logit-normal", shift=OF_FLUX),
    references=beside_or_concatenated,
)
