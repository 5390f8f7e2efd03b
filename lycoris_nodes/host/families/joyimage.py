"""JoyImage."""

from .family import Family, Network, References
from .shared import numbered

FAMILY = Family(
    hosts=("JoyImage",),
    references=References(
        node="TextEncodeJoyImageEdit", most=6, given=lambda images, size: {"images": numbered(images, "", 0)}
    ),
    networks={"JoyImageTransformer3DModel": Network(fused=True)},
)
