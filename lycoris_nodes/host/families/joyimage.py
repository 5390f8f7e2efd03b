"""JoyImage."""

from .family import Family, Network, References
from .shared import numbered, taken_by

_REFERENCES = References(
    node="TextEncodeJoyImageEdit", most=6, given=lambda images, size: {"images": numbered(images, "", 0)}
)

FAMILY = Family(
    hosts=("JoyImage",),
    references=taken_by(_REFERENCES),
    networks={"JoyImageTransformer3DModel": Network(fused=True)},
)
