"""OmniGen2, and Boogu, which derives from it."""

from .family import Family, Network, References
from .shared import beside_or_concatenated, numbered

_BOOGU = References(
    node="TextEncodeBooguEdit",
    given=lambda images, size: {"negative_prompt": "", "images": numbered(images, "_", 1)},
)

FAMILY = Family(
    hosts=("Omnigen2",),
    references=beside_or_concatenated,
    networks={"OmniGen2Transformer2DModel": Network(), "BooguTransformer2DModel": Network()},
    variants={"Boogu": {"references": _BOOGU}},
)
